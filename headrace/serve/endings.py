"""Tells an event loop of processes that have ended, also of those from before there was a loop. Torch-free."""

import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class Endings:
    """Each end is told once, in order. asyncio is not imported here: processes are started before that.

    told    what is called on the loop, with a process' number, its exit code and how many seconds it lived
    """

    def __init__(self, told: Callable[[int, int, float], None]):
        self._told = told
        self._loop: AbstractEventLoop | None = None
        self._ended: deque[tuple[int, int, float]] = deque()

    def watch(self, number: int, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of a process that was just started, on a thread of its own."""
        words = number, process, monotonic()
        Thread(target=self._wait, args=words, name="headrace-wait", daemon=True).start()

    def attach(self, loop: "AbstractEventLoop") -> None:
        """Have ends told on this loop; to be called there. Those that came before are told at once."""
        self._loop = loop
        self._tell()

    def _wait(self, number: int, process: "subprocess.Popen[bytes]", began: float) -> None:
        self._ended.append((number, process.wait(), monotonic() - began))
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: we stop as well
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        while self._ended:
            self._told(*self._ended.popleft())
