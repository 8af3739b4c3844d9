"""The part of a run in which the server was neither filling up nor running dry."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.bench.serve.sample import Sample

STEPS = 400
"""Points of a run's time line that are looked at."""

SHORTEST = 0.2
"""Part of a run that a window must cover to be worth reporting."""


def running(samples: Sequence[Sample], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many requests were on their way at each moment."""
    begun = np.sort([sample.sent for sample in samples])
    ended = np.sort([sample.ended for sample in samples])
    return (np.searchsorted(begun, moments, "right") - np.searchsorted(ended, moments, "right")).astype(float)


def window(samples: Sequence[Sample], duration: float) -> tuple[float, float] | None:
    """From when to when a run was steady, in seconds; None where it never was.

    The end is when the last request was sent: from then on the server runs dry. The beginning is found by MSER (White
    1997) on the number of requests on their way: the cut after which the mean of the rest is known best.
    """
    if len(samples) < 20:
        return None
    end = min(duration, max(sample.sent for sample in samples))
    if end <= 0:
        return None
    moments = np.linspace(0, end, STEPS)
    level = running(samples, moments)
    best, cut = np.inf, 0
    for n in range(STEPS // 2):
        rest = level[n:]
        error = float(rest.var()) / len(rest)
        if error < best:
            best, cut = error, n
    begin = float(moments[cut])
    return (begin, end) if end - begin >= SHORTEST * duration else None


def inside(samples: Sequence[Sample], begin: float, end: float) -> list[Sample]:
    """Requests that were due in a window."""
    return [sample for sample in samples if begin <= sample.scheduled < end]


def moments_of(sample: Sample) -> NDArray[np.float64]:
    """When each chunk with tokens came."""
    first = [] if sample.first is None else [sample.first]
    return np.cumsum([*first, *sample.chunks])


def tokens_in(samples: Sequence[Sample], begin: float, end: float) -> int:
    """Tokens that came in a window, whenever their requests began."""
    total = 0
    for sample in samples:
        if sample.first is None or sample.first >= end or sample.ended < begin:
            continue
        moments = moments_of(sample)
        counts = np.array(sample.tokens) if sample.tokens else np.ones(len(moments))
        scale = sample.output_tokens / counts.sum() if counts.sum() else 1.0
        held = (moments >= begin) & (moments < end)
        total += float(counts[held].sum()) * scale
    return round(total)
