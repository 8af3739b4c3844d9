"""Percentiles and rates of the last seconds, from running totals looked at now and then."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate


def quantile(edges: Sequence[float], counts: Sequence[float], part: float) -> float | None:
    """The value below which `part` of what the buckets counted lies, or None where they counted nothing.

    `counts` has one entry per bucket, the last for what is above every edge. Within a bucket values count as
    evenly spread, as in Prometheus' histogram_quantile; above the last edge the last edge is the answer.
    """
    below = list(accumulate(counts))
    if not below or not below[-1]:
        return None
    rank = part * below[-1]
    at = bisect_left(below, rank)
    if at >= len(edges):
        return edges[-1]
    low = edges[at - 1] if at else 0.0
    before = below[at - 1] if at else 0.0
    return (
        low + (edges[at] - low) * (rank - before) / (below[at] - before) if below[at] > before else edges[at]
    )


class Window:
    """Snapshots of running totals over the last `seconds`, two at most in every `apart` of them."""

    def __init__(self, seconds: float, apart: float = 0.5):
        self.seconds, self.apart = seconds, apart
        self._taken: deque[tuple[float, list[float]]] = deque()
        self._between: tuple[float, list[float]] | None = None

    def push(self, now: float, values: list[float]) -> tuple[float, list[float]]:
        """Add a snapshot; how far back the window reaches, and what was added since.

        With nothing to compare with, both are zero.
        """
        taken = self._taken
        if taken and now - taken[-1][0] < self.apart:
            self._between = (now, values)
        else:
            if self._between is not None:  # else what came just before a pause would seem to be of its end
                taken.append(self._between)
            taken.append((now, values))
            self._between = None
        while len(taken) > 1 and now - taken[1][0] >= self.seconds:
            taken.popleft()
        start, before = taken[0]
        return now - start, [max(0.0, new - old) for new, old in zip(values, before, strict=True)]
