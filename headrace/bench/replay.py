"""Times kernels on a GPU: graphs of launches over memory that has left the L2, and what the device can do at best."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from headrace.bench.result import spread

Call = Callable[[], object]

ROTATED_BYTES = 320e6
"""Over five times the L2 of an H200: by the time its turn comes again, nothing of an input is left there."""
LAUNCHES = (20, 256)
"""Per graph: at least, so that starting it does not count, and at most."""


class Took(NamedTuple):
    """Microseconds per launch, the median of some replays, and their `spread`."""

    us: float
    spread: float


class Limits(NamedTuple):
    """What this device does at best: bytes per second of a copy, read and written; operations per second of bf16."""

    bandwidth: float
    arithmetic: float

    def floor_us(self, moved: float, operations: float = 0.0) -> float:
        """Microseconds that bytes or operations take, whichever are more."""
        return max(moved / self.bandwidth, operations / self.arithmetic) * 1e6


def copies_of(nbytes: float) -> int:
    """How many sets of inputs of this size must take turns."""
    return int(min(LAUNCHES[1], max(2, ROTATED_BYTES // max(nbytes, 1) + 1)))


def recorded(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of these launches in turn, LAUNCHES of them at least, and how many they are."""
    calls = list(calls) * -(-LAUNCHES[0] // len(calls))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:  # what is compiled and allocated once is not timed
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph, len(calls)


def replay(calls: Sequence[Call], repeats: int = 7, target_ms: float = 4.0) -> Took:
    """Time a graph of these launches in turn; each replay of it long enough to be timed."""
    graph, launches = recorded(calls)
    once = elapsed_ms(graph, 1)
    count = max(1, min(200, int(target_ms / max(once, 1e-3))))
    each = [elapsed_ms(graph, count) * 1e3 / count / launches for _ in range(repeats)]
    return Took(median(each), spread(each))


def elapsed_ms(graph: torch.cuda.CUDAGraph, count: int) -> float:
    """Milliseconds of `count` replays."""
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(count):
        graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def limits() -> Limits:
    """Measure a copy of 512 MiB and a product of 8192 x 8192 x 8192."""
    source, target = (torch.empty(1 << 29, dtype=torch.uint8, device="cuda") for _ in range(2))
    copied = replay([lambda: target.copy_(source)])
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiplied = replay([lambda: torch.mm(a, b)], target_ms=30.0)
    return Limits(2 * source.nbytes / copied.us * 1e6, 2 * 8192**3 / multiplied.us * 1e6)
