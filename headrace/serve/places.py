"""What all front processes of a server have taken in, so that a limit is one for the whole server; torch-free."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from headrace.serve.series import memory


class Taken(NamedTuple):
    """Requests that are here, how many of them have not begun, and the tokens of the prompts of those."""

    here: int
    waiting: int
    tokens: int


WIDTH = len(Taken._fields)


class Places:
    """Each front writes its own numbers and reads those of all.

    path    a file that the fronts share; None where there is but one
    """

    def __init__(self, path: Path | None = None, front: int = 0, fronts: int = 1):
        if path is None:
            front, fronts = 0, 1
        self._counts = memory(8 * WIDTH * fronts, path).cast("q")
        self._at = WIDTH * front
        self._lock = None if path is None else path.open("rb")
        for n in range(self._at, self._at + WIDTH):
            self._counts[n] = 0  # a process before this one may have left some

    @property
    def own(self) -> Taken:
        return Taken(*self._counts[self._at : self._at + WIDTH])

    @property
    def total(self) -> Taken:
        return Taken(*(sum(self._counts[n::WIDTH]) for n in range(WIDTH)))

    def add(self, here: int, waiting: int, tokens: int) -> None:
        """Change this front's numbers."""
        for n, more in enumerate((here, waiting, tokens), self._at):
            self._counts[n] += more

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other front takes anything in: some microseconds. The system ends it for a process that dies."""
        if self._lock is None:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._lock is not None:
            self._lock.close()
