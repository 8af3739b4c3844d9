"""What front processes ask each other, by way of the engine: each knows only its own requests; torch-free."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from headrace.serve.wire import Relay

PATIENCE = 0.5
"""Seconds for an answer; who is silent for so long is left out."""


class Peers:
    """The other fronts of a server.

    reply   what this one says to a question of theirs; any plain value, None for nothing
    """

    def __init__(self, front: int, fronts: int, send: Callable[[Relay], bool]):
        """`send` tells whether there is an engine to hand a message on."""
        self.reply: Callable[[Any], Any] = lambda question: None
        self._front, self._others, self._send = front, fronts - 1, send
        self._numbers = count()
        self._asked: dict[int, tuple[list[Any], asyncio.Event]] = {}

    async def ask(self, question: Any) -> list[Any]:
        """What the others say to a question, without those who have nothing to say."""
        if not self._others:
            return []
        number, said, complete = next(self._numbers), [], asyncio.Event()
        self._asked[number] = said, complete
        try:
            if self._send(Relay(self._front, -1, number, question)):
                with suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await complete.wait()
        finally:
            del self._asked[number]
        return [one for one in said if one is not None]

    def hear(self, message: Relay) -> None:
        """A question, or an answer to one of ours."""
        if message.to < 0:
            self._send(Relay(self._front, message.front, message.number, self.reply(message.said)))
        elif (asked := self._asked.get(message.number)) is not None:
            said, complete = asked
            said.append(message.said)
            if len(said) == self._others:
                complete.set()
