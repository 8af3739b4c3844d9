"""Whether a CPU's small steps are faster on one thread or on all: found out while they run.

A step of one token is some hundred products of microseconds; after each the threads meet. On an idle machine a second
thread brings what memory gives beyond the first; where other programs run, one that has to wait for its turn
keeps all the others waiting, and one thread alone is more than twice as fast.
"""

from time import perf_counter

import torch

MANY = 64
"""From so many tokens on a step always has all threads."""
TRIES = 3
"""Steps that a choice is judged by: the median of the last ones."""
PERIOD = 96
"""Steps after which the other choice is tried again."""


class Pace:
    """Sets torch's threads before a step and takes the time of it. Steps of like sizes are judged together."""

    def __init__(self, threads: int):
        self._threads = threads
        self._records = {size: _Record() for size in range(MANY.bit_length())}
        self._open: tuple[_Record, bool, float] | None = None

    def begin(self, tokens: int) -> None:
        """A step of so many tokens comes."""
        record = self._records.get(tokens.bit_length()) if tokens < MANY else None
        alone = record is not None and record.next()
        torch.set_num_threads(1 if alone else self._threads)
        self._open = None if record is None else (record, alone, perf_counter())

    def end(self) -> None:
        """The step that was begun last is over."""
        if self._open is not None:
            record, alone, began = self._open
            record.add(alone, perf_counter() - began)
            self._open = None


class _Record:
    """How long steps of one size took: [0] on all threads, [1] on one."""

    def __init__(self) -> None:
        self._times: tuple[list[float], list[float]] = ([], [])
        self._steps = 0

    def next(self) -> bool:
        """Whether the next step is to run on one thread."""
        every, one = self._times
        if len(one) < TRIES or len(every) < TRIES:
            return len(one) < TRIES
        better = sorted(one)[TRIES // 2] <= sorted(every)[TRIES // 2]
        return better != (self._steps % PERIOD >= PERIOD - TRIES)

    def add(self, alone: bool, seconds: float) -> None:
        self._steps += 1
        times = self._times[alone]
        times.append(seconds)
        del times[:-TRIES]
