"""The highest rate at which limits hold: a sweep to see the curve, a search to find the edge."""

import re
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Literal, NamedTuple

from msgspec.structs import replace

from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.campaign import Level
from headrace.bench.serve.measures import Summary, read_terms

LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*([<>])=?\s*([0-9.eE+-]+)\s*")
POINTS = 8
"""Levels of a sweep between idle and saturated."""

CLOSE = 1.1
"""The search ends when the lowest rate that failed is at most so many times the highest that held."""

LONGEST = 14
"""Levels a search may take."""

Verdict = Literal["holds", "fails", "unclear"]
Play = Callable[[Load], Level]


class Limit(NamedTuple):
    """`name` must be below (above: `high`) a bound."""

    name: str
    high: bool
    bound: float

    def judge(self, summary: Summary) -> Verdict:
        """By the confidence interval of a percentile where there is one: unclear while the bound lies within."""
        value = summary.value(self.name)
        if value is None:
            return "fails"
        low, top = value, value
        head, _, tail = self.name.rpartition("_")
        spread = summary.spreads.get(head)
        if spread is not None and tail != "mean":
            _, least, most = spread.percentiles[int(tail[1:])]
            low, top = (value if least is None else least), (spread.most if most is None else most)
        if self.high:
            return "holds" if low > self.bound else "fails" if top <= self.bound else "unclear"
        return "holds" if top < self.bound else "fails" if low >= self.bound else "unclear"


class Found(NamedTuple):
    """Where the edge is. `holds` is the highest rate that held with confidence, `fails` the lowest that did not.

    0 and None where no rate was found that did.
    """

    holds: float
    fails: float | None
    steps: list[tuple[float, Verdict]]


def read_limits(text: str) -> list[Limit]:
    """`ttft_p99<0.5,tpot_p99<0.05` as limits. Raises Refused."""
    what = "limit; expected such as ttft_p99<0.5 or attained>0.99"
    return [Limit(m[1], m[2] == ">", float(m[3])) for m in read_terms(text, LIMIT, what, "find-slo")]


def judge(limits: Sequence[Limit], level: Level) -> Verdict:
    """All limits of a level. What fails, or was never answered, is a failure of the level: 1% may."""
    whole = level.whole
    lost = sum(count for outcome, count in whole.outcomes.items() if outcome not in ("ok", "cancelled"))
    if lost > 0.01 * whole.sent:
        return "fails"
    found = {limit.judge(whole) for limit in limits}
    return "fails" if "fails" in found else "unclear" if "unclear" in found else "holds"


def search(limits: Sequence[Limit], begin: float, duration: float, load: Load, play: Play) -> Iterator[Found]:
    """Look for the edge; what is known after each level.

    The rate is doubled until it fails, then the middle (in ratio) of what held and what failed is tried. A level
    that leaves it unclear is played once more for twice as long; if that does not tell either, it counts as failed.
    Where the client itself comes too late, twice, where the server is gone, or where the rate is too low to send a
    request at all, the search ends with what is known.
    """
    holds, fails = 0.0, inf
    steps: list[tuple[float, Verdict]] = []
    rate = begin
    while len(steps) < LONGEST:
        level = play(_at(load, rate, duration))
        verdict = judge(limits, level)
        if (verdict == "unclear" or level.invalid) and not level.dead:
            level = play(_at(load, rate, 2 * duration))
            verdict = judge(limits, level)
        if level.invalid or level.dead or not level.samples:  # nothing more can be found out from here
            yield Found(holds, None if fails == inf else fails, [*steps, (rate, "unclear")])
            return
        steps.append((rate, verdict))
        if verdict == "holds":
            holds = max(holds, rate)
        else:
            fails = min(fails, rate)
        yield Found(holds, None if fails == inf else fails, list(steps))
        if fails < inf and holds and fails / holds <= CLOSE:
            return
        if fails < 0.01:
            return
        rate = 2 * rate if fails == inf else rate / 4 if not holds else (holds * fails) ** 0.5


def _answered(level: Level) -> float:
    """Requests per second while it was steady, where it was: beginning and end count for much in a short run."""
    whole, calm = level.whole, level.steady
    ok = whole.outcomes.get("ok", 0)
    if calm is None or not ok or not whole.output_tokens:
        return whole.requests_per_second
    return calm.output_per_second / (whole.output_tokens / ok)


def _at(load: Load, rate: float, duration: float) -> Load:
    """A level long enough for a percentile to mean something, though not for ever."""
    longer = max(duration, min(4 * duration, 100 / rate))
    return replace(load, rate=rate, duration=longer, requests=None, streams=None)


def sweep(duration: float, load: Load, play: Play) -> Iterator[Level]:
    """From idle to saturated: one stream, as many as the server takes, and rates between what these two reach."""
    idle = play(replace(load, streams=1, duration=duration, requests=None))
    yield idle
    busy, streams = idle, 1
    while streams < 1024:  # more streams until they bring no more
        streams *= 4
        level = play(replace(load, streams=streams, duration=duration, requests=None))
        yield level
        gained = _answered(level) > 1.1 * _answered(busy)
        busy = level if gained else busy
        if not gained:
            break
    most = _answered(busy)
    for n in range(POINTS if most else 0):
        rate = most * (0.1 + 1.0 * n / (POINTS - 1))
        yield play(_at(load, rate, duration))
