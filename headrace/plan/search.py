"""The cheapest configuration that holds: devices, how many, how weights are kept, how many requests at once."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from headrace.base.errors import Refused
from headrace.plan.forecast import Forecast
from headrace.plan.gpus import Gpu
from headrace.plan.options import Option, splits
from headrace.plan.scheme import SCHEMES
from headrace.plan.workload import Limit, holds

COUNTS = (1, 2, 4, 8)
"""Numbers of devices that are tried."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration with as many requests at once as the limits allow, and as many copies as the rate needs."""

    option: Option
    forecast: Forecast
    replicas: int
    qps: float
    """Requests per second of all replicas: what was asked for, or the most that holds."""

    @property
    def per_hour(self) -> float:
        return self.replicas * self.option.per_hour

    @property
    def cost(self) -> float:
        """Dollars per million tokens that are made."""
        return self.per_hour / 3600 / (self.qps * self.option.work.tokens_out) * 1e6


def cheapest(
    option: Option,
    gpus: Iterable[Gpu],
    schemes: Sequence[str],
    found: list[Limit],
    qps: float | None = None,
    counts: Sequence[int] = COUNTS,
) -> list[Choice]:
    """What holds the limits `found` and all copies together make `qps`, cheapest first.

    Raises Refused with the nearest miss where nothing does.
    """
    choices: list[Choice] = []
    misses: list[tuple[float, Option, Forecast]] = []
    for tried in _options(option, gpus, schemes, counts):
        if (made := _most(tried, found)) is not None:
            choices.append(_choice(*made, qps))
        elif (alone := tried.asked(concurrency=1).forecast) is not None:
            excess = max((alone.measure(limit.measure) / limit.below for limit in found), default=1.0)
            misses.append((excess, tried, alone))
    if not choices:
        raise _nothing(misses, found)
    return sorted(choices, key=lambda c: (c.cost if qps is None else c.per_hour, c.option.gpus))


def _options(
    option: Option, gpus: Iterable[Gpu], schemes: Sequence[str], counts: Sequence[int]
) -> Iterator[Option]:
    for gpu in gpus:
        for count in counts if gpu.kind == "gpu" else (1,):
            if not splits(option.anatomy, count):
                continue
            for name in schemes:
                kind = SCHEMES[name].arithmetic
                if kind == "fp8" and not gpu.fp8 and gpu.kind == "gpu":
                    continue
                yield replace(option, gpu=gpu, gpus=count, scheme=name)


def _most(option: Option, found: list[Limit]) -> tuple[Option, Forecast] | None:
    """The option with the most requests at once for which the limits hold; none of them waits for a row."""

    def at(concurrency: int) -> tuple[Option, Forecast] | None:
        tried = option.asked(concurrency=concurrency)
        made = tried.forecast
        fits = made is not None and made.rows >= concurrency and holds(found, made.measure)
        return (tried, made) if fits and made is not None else None

    most = bisect_left(range(1, option.memory.rows + 1), True, key=lambda count: at(count) is None)
    return at(most) if most else None


def _choice(option: Option, made: Forecast, qps: float | None) -> Choice:
    if qps is None:
        return Choice(option, made, 1, made.requests_per_s)
    replicas = ceil(qps / made.requests_per_s)
    return Choice(*_at_rate(option, made, qps / replicas), replicas, qps)


def _at_rate(option: Option, most: Forecast, qps: float) -> tuple[Option, Forecast]:
    """The fewest requests at once that make the rate: what a replica really has to carry."""

    def enough(concurrency: int) -> bool:
        made = option.asked(concurrency=concurrency).forecast
        return made is not None and made.requests_per_s >= qps

    fewer = option.asked(concurrency=1 + bisect_left(range(1, option.work.concurrency), True, key=enough))
    made = fewer.forecast
    return (fewer, made) if made is not None else (option, most)


def _nothing(misses: list[tuple[float, Option, Forecast]], found: list[Limit]) -> Refused:
    if not misses:
        return Refused(
            "the model fits on none of these devices, however many are tried",
            hint="allow other devices (leave --gpu out), a narrower --scheme, or a shorter --max-len",
        )
    excess, option, made = min(misses, key=lambda miss: miss[0])
    said = ", ".join(f"{limit.measure} {made.measure(limit.measure):.4g} s" for limit in found)
    return Refused(
        f"no configuration holds; nearest is {option.name} with one request at a time: {said}",
        param="slo",
        hint=f"allow {excess:.3g} times as much, or other devices (leave --gpu out) or schemes",
    )
