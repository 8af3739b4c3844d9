"""When requests are due: patterns of arrival, the same times for the same seed."""

from collections.abc import Iterator
from itertools import islice, takewhile
from math import inf, sqrt
from random import Random
from typing import Literal

import msgspec

from headrace.base.errors import Refused

MOST = 10_000_000
"""Requests of a level: all of them are drawn before it begins."""

Pattern = Literal["poisson", "constant", "burst", "ramp"]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One level of load. With `streams`, a closed loop: each sends its next request when it has the last answer.

    rate        requests per second of an open loop, on average; infinite: all at once
    requests    at most so many        duration    none begins after so many seconds
    burstiness  shape of the gamma distribution of gaps; 1 is a Poisson process, less comes in clumps
    burst       requests that come together
    ramp_from   the rate at the beginning of a ramp
    replay      due times come with the data
    """

    rate: float = inf
    streams: int | None = None
    pattern: Pattern = "poisson"
    requests: int | None = None
    duration: float | None = None
    burstiness: float = 1.0
    burst: int = 8
    ramp_from: float = 0.0
    replay: bool = False

    @property
    def name(self) -> str:
        """What a person calls it."""
        if self.streams is not None:
            return f"{self.streams} streams"
        if self.replay:
            return "trace" if self.rate in (1.0, inf) else f"trace, {self.rate:g} times as fast"
        if self.rate == inf:
            return "all at once"
        said = f"{self.rate:.4g}/s"
        if self.pattern != "poisson":
            return f"{said} {self.pattern}"
        return said if self.burstiness == 1 else f"{said} burstiness {self.burstiness:g}"


def times(load: Load, seed: int) -> list[float]:
    """When the requests of an open loop are due, in seconds from the start. Raises Refused for one without end."""
    if load.requests is None and load.duration is None:
        raise Refused("neither --requests nor --duration is given; expected one of them", param="requests")
    if load.rate <= 0:
        raise Refused(f"--rate is {load.rate:g}; expected more than 0", param="rate")
    if load.requests is None and load.rate == inf:
        raise Refused("a rate without bound needs --requests", param="requests")
    asked = min(load.requests or inf, load.rate * (load.duration or inf))
    if asked > MOST:
        raise Refused(f"{load.name}: {asked:,.0f} requests; at most {MOST:,} are played", param="rate")
    found = _endless(load, Random(f"arrivals {seed}"))
    if load.duration is not None:
        last = load.duration
        found = takewhile(lambda at: at < last, found)
    return list(islice(found, load.requests))


def _endless(load: Load, random: Random) -> Iterator[float]:
    if load.rate == inf:
        while True:
            yield 0.0
    match load.pattern:
        case "constant":
            yield from _constant(load.rate)
        case "burst":
            for at in _constant(load.rate / load.burst):
                yield from [at] * load.burst
        case "ramp":
            yield from _ramp(load, random)
        case "poisson":
            at = 0.0
            while True:
                at += random.gammavariate(load.burstiness, 1 / (load.rate * load.burstiness))
                yield at


def _constant(rate: float) -> Iterator[float]:
    n = 0
    while True:
        yield n / rate
        n += 1


def _ramp(load: Load, random: Random) -> Iterator[float]:
    """A Poisson process whose rate grows evenly from `ramp_from` to `rate` over the duration.

    Unit-rate arrivals are mapped through the inverse of the expected count by t, which is
    from t + (to - from) t^2 / (2 T).
    """
    begin, end = load.ramp_from, load.rate
    length = load.duration or 2 * (load.requests or 1) / (begin + end)
    slope = (end - begin) / length
    expected = 0.0
    while True:
        expected += random.expovariate(1.0)
        if abs(slope) < 1e-12:
            yield expected / end
            continue
        inside = begin * begin + 2 * slope * expected
        if inside < 0:
            return  # a falling rate that has reached nothing
        yield (sqrt(inside) - begin) / slope
