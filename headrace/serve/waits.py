"""Waits that end at once when the server stops: for bodies that come in, for texts on other threads; torch-free."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace.base.errors import Unreachable


class Waits:
    """Those of one front process. `over`: it takes nothing new."""

    def __init__(self) -> None:
        self.over = False
        self._all: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def until(self, when: float | None = None) -> AsyncIterator[None]:
        """As asyncio.timeout_at. Raises what `stops` gives where the server stops first."""
        wait = asyncio.timeout_at(0.0 if self.over else when)
        self._all.add(wait)
        try:
            async with wait:
                yield
        except TimeoutError:
            if self.over:
                raise stops() from None
            raise
        finally:
            self._all.discard(wait)

    def end(self) -> None:
        """Nobody waits any longer. Idempotent."""
        self.over = True
        for wait in self._all:
            if not wait.expired():
                wait.reschedule(0.0)


def stops() -> Unreachable:
    """The refusal of a server that stops."""
    return Unreachable("the server is shutting down", hint="ask another one, or again later")
