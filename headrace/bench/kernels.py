"""Kernels one by one: each checked against its definition, then timed against its floor and against the library.

The files `kernels_rows`, `kernels_linear`, `kernels_eight`, `kernels_int4` and `kernels_attention` list cases; here is
what is the same for all.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import NamedTuple

import torch
from triton.runtime.errors import OutOfResources

from headrace.base.errors import UnknownName
from headrace.bench import kernels_attention, kernels_eight, kernels_int4, kernels_linear, kernels_rows
from headrace.bench.kernels_case import Case, Sizes, Way
from headrace.bench.replay import Limits, Took, copies_of, replay
from headrace.bench.result import Measure

SOURCES = (kernels_rows, kernels_linear, kernels_eight, kernels_int4, kernels_attention)
KERNELS = tuple(name for source in SOURCES for name in source.KERNELS)
SHARE_BYTES = 8 << 30
"""Memory of the device that is there for each process that checks."""

Say = Callable[[str], None]


class Outcome(NamedTuple):
    """What became of a case: its error, and what it took if that was within its bound."""

    shape: str
    case: Case
    error: float
    took: Took | None = None
    library: Took | None = None

    @property
    def name(self) -> str:
        return f"{self.shape} {self.case.kernel} {self.case.name}"

    @property
    def sound(self) -> bool:
        """Not for NaN either."""
        return self.error <= self.case.bound

    def measures(self, limits: Limits) -> Iterator[Measure]:
        """Its time; how much of it the floor would take; how many times as long the library took."""
        if self.took is None:
            return
        us, spread = self.took
        floor = limits.floor_us(self.case.bytes, self.case.operations)
        yield Measure(f"{self.name}: time", us, "us", "lower", spread)
        yield Measure(f"{self.name}: floor by time", floor / us * 100, "%", "higher", spread)
        if self.library is not None:
            yield Measure(f"{self.name}: against library", self.library.us / us, "x", "higher", spread)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which cases: some kernels of some shapes, run in one way."""

    kernels: tuple[str, ...]
    shapes: tuple[str, ...]
    way: Way = field(default_factory=Way)

    def cases(self) -> list[tuple[str, Case]]:
        """(shape, case) of all. Raises UnknownName for a kernel or a shape that is not known."""
        for kernel in self.kernels:
            if kernel not in KERNELS:
                raise UnknownName.among("kernel", kernel, list(KERNELS), param="kernel")
        found = []
        for shape in self.shapes:
            sizes = Sizes.of(shape)
            every = [case for source in SOURCES for case in source.cases(sizes, self.way)]
            found += [(shape, case) for case in every if case.kernel in self.kernels]
        return found


def run(selection: Selection, said: Say = lambda _: None) -> list[Outcome]:
    """Check all, several processes at a time, then time what is sound, one after the other."""
    cases = selection.cases()
    said(f"checking {len(cases)} cases")
    errors = _check_all(selection, len(cases))
    outcomes = []
    for (shape, case), error in zip(cases, errors, strict=True):
        outcome = Outcome(shape, case, error)
        if outcome.sound:
            outcome = _timed(outcome)
        outcomes.append(outcome)
        said(_line(outcome))
    return outcomes


def _line(outcome: Outcome) -> str:
    if outcome.took is None:
        return f"{outcome.name}: error {outcome.error:.2g} over {outcome.case.bound:.2g}"
    return f"{outcome.name}: {outcome.took.us:.1f} us"


@torch.inference_mode()
def _timed(outcome: Outcome) -> Outcome:
    launch = outcome.case.make(copies_of(outcome.case.bytes), torch.device("cuda"))
    library = replay(launch.library) if launch.library else None
    return outcome._replace(took=replay(launch.calls), library=library)


@torch.inference_mode()
def check(case: Case, device: torch.device) -> float:
    """The error of one case, in exact float32 arithmetic where the definition multiplies."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    return case.make(1, device).check()


def _check_one(selection: Selection, index: int) -> float:
    """Infinite where the device is too small for the case."""
    try:
        return check(selection.cases()[index][1], torch.device("cuda"))
    except (torch.OutOfMemoryError, OutOfResources):
        return float("inf")
    finally:
        torch.cuda.empty_cache()


def _check_all(selection: Selection, count: int) -> list[float]:
    """Checking is mostly compiling, which several processes do at once; what they leave in Triton's cache is timed."""
    with pool() as processes:
        jobs = [processes.submit(_check_one, selection, index) for index in range(count)]
        return [job.result() for job in jobs]


def pool() -> ProcessPoolExecutor:
    """As many processes as there are cores and memory of the device for."""
    free = torch.cuda.mem_get_info()[0]
    return ProcessPoolExecutor(
        max(1, min(14, os.cpu_count() or 1, free // SHARE_BYTES)), get_context("spawn")
    )
