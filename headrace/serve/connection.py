"""Which engine process a front listens to, and whether it is well; torch-free."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from os import getpid
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, assert_never

from headrace.base.errors import Broken, Fault
from headrace.engine.request import Request
from headrace.serve import wire
from headrace.serve.link import Link
from headrace.serve.vigil import Vigil
from headrace.serve.words import read_words
from headrace.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from headrace.serve.frontend import Frontend

log = logging.getLogger(__name__)


class Connection:
    """Listens to the newest engine process, for a front.

    up          it has said that it is ready, and may be given requests
    loading     what it said last of how far it is
    on_stall    called with the reason when it makes no progress, where it was started from: it is to be killed
    on_loading  called with what a starting engine does, and which part of that is done
    """

    def __init__(self, folder: str | Path, owner: "Frontend"):
        limit = owner.settings.stall_seconds
        self.up = False
        self.loading = wire.Loading("starting", 0.0)
        self.vigil = Vigil(limit)
        self.on_stall: Callable[[str], None] | None = None
        self.on_loading: Callable[[str, float], None] = lambda doing, part: None
        self._owner = owner
        self._number = -1  # of the engine process last heard of
        self._deaf = -1  # of the last one that is not listened to any more
        self._doubt = False  # some engine process left; ours must be heard of again
        self._patient = False  # steps run on a CPU
        self._added: list[Request] = []
        self._loop = asyncio.get_running_loop()
        self._tokenizer: tuple[str | None, asyncio.Future[Tokenizer | None]] | None = None
        self._link = Link(folder, owner.front, self._receive, self._suspect)
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._keep_watch(min(0.25, limit / 4)))

    @property
    def well(self) -> bool:
        """Whether the engine takes requests, and nothing is to be said against it."""
        return self.up and not self._doubt and not self.vigil.silent(monotonic())

    def send(self, message: wire.ToEngine) -> bool:
        """Send to the engine, if there is one; one that comes later is told all that is open.

        Requests that are added within one turn of the loop go as one message, so that an idle engine's first step
        has all of them.
        """
        if not self.up:
            return False
        if isinstance(message, wire.Add):
            if not self._added:
                self._loop.call_soon(self._send_added)
            self._added += message.requests
        else:
            self._send_added()
            self._link.send(self._number, message)
        return True

    def _send_added(self) -> None:
        if self._added:
            self._link.send(self._number, wire.Add(self._added))
            self._added = []

    def lose(self) -> None:
        """The engine process is dead, or is about to be killed: what it still says is not listened to."""
        if self._deaf < self._number:
            self._deaf = self._number
            self._mourn()

    def close(self) -> None:
        """Free the socket."""
        self.up = False
        self._added = []
        for task in self._tasks:
            task.cancel()
        self._link.close()

    def _receive(self, number: int, message: wire.FromEngine) -> None:
        if number < self._number or number <= self._deaf:
            return  # one that was given up
        now = monotonic()
        if number > self._number:
            self._mourn()
            self._number = number
            self.vigil.restart(now)
            self._link.send(number, wire.Hello(getpid()))
        self._doubt = False
        if isinstance(message, wire.Events):
            self.vigil.advance(now)
            self._owner.take(message, now)
        else:
            self.vigil.hear(now)
            self._hear(number, message, now)

    def _hear(self, number: int, message: wire.Seldom, now: float) -> None:
        match message:
            case wire.Pulse():
                self.vigil.beat(message, now)
                if not self.up:
                    self._link.send(number, wire.Hello(getpid()))
            case wire.Ready(facts, boot):
                if boot == getpid() and not self.up:
                    self._spawn(self._get_ready(number, facts))
            case wire.Refusals(refusals):
                self._owner.take_refusals(refusals)
            case wire.Loading():
                self.loading = message
                self.on_loading(message.doing, message.part)
                if message.tokenizer is not None:
                    self._read_tokenizer(message.tokenizer)
            case wire.Relay():
                self._owner.peers.hear(message)
            case wire.Failed(refusal):
                self._owner.fail(refusal.fault())
            case _:
                assert_never(message)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A task has ended. Without it this front would wait for ever, so what it raised is not kept quiet."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the connection to the engine failed", exc_info=error)
            said = f"the connection to the engine failed: {type(error).__name__}: {error}"
            self._owner.fail(error if isinstance(error, Fault) else Broken(said))

    async def _get_ready(self, number: int, facts: wire.Facts) -> None:
        tokenizer = await self._read_tokenizer(facts.tokenizer)
        if tokenizer is not None and facts.template is not None:
            tokenizer.template_source = facts.template
        if number == self._number and number > self._deaf and not self.up:
            self._patient = facts.device == "cpu"
            self.vigil.restart(monotonic())
            self.up = True
            self._owner.meet(facts, tokenizer)

    def _read_tokenizer(self, source: str | None) -> "asyncio.Future[Tokenizer | None]":
        """Read it on another thread, once: it is asked for when its place is known, and when the engine is ready."""
        if self._tokenizer is None or self._tokenizer[0] != source:
            self._tokenizer = source, self._loop.run_in_executor(self._owner.threads, read_words, source)
        return self._tokenizer[1]

    def _mourn(self) -> None:
        if self.up:
            self.up = False
            self._added = []  # they are among all that the next one is told
            self._owner.mourn()

    def _suspect(self) -> None:
        """Some engine process has closed its end; if it is ours, no pulse will follow."""
        self._doubt = True

    async def _keep_watch(self, period: float) -> None:
        while True:
            await asyncio.sleep(period)
            if not self.up or self.on_stall is None:
                continue
            pulse = self.vigil.pulse  # the work may be that of other fronts
            why = self.vigil.look(self._owner.busy or pulse.busy, self._patient, monotonic())
            if why is not None:
                self.lose()
                self.on_stall(f"{why}; its step: {self._owner.name_rows(pulse)}")
