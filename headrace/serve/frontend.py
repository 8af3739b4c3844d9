"""A front process's side of the engine: requests go in, updates come out, whatever happens to the engine."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from os import getpid
from pathlib import Path
from time import monotonic
from typing import TypeVar

import msgspec

from headrace.base.errors import Broken, Busy, Fault, Late, Unreachable
from headrace.engine.intake import Intake
from headrace.engine.request import Event, Request
from headrace.engine.stream import Update
from headrace.serve.answer import Answer, Held
from headrace.serve.connection import Connection
from headrace.serve.peers import Peers
from headrace.serve.places import Places
from headrace.serve.queue import Queue
from headrace.serve.record import Watcher
from headrace.serve.settings import Serve
from headrace.serve.trial import Trial
from headrace.serve.waits import Waits, stops
from headrace.serve.wire import Add, Cancel, Events, Facts, Pulse, Refusal, Stats
from headrace.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
T = TypeVar("T")

LONG_TEXT = 4096
"""Characters from which on a text is tokenized on another thread: about what takes half a millisecond."""

PROBE = 4
"""Events after which a suspect is harmless: more than the steps that may have been lost with the engine."""

SEE_LOG = "the server's log says why"


class Frontend:
    """Submits requests to the engine and hands back what comes. One per front process, used on one event loop.

    facts, intake       raise Unreachable until the engine has been ready once
    stats       the engine's latest
    answers     what is being answered now, by the id it was submitted with
    watchers    told of everything but tokens; see record.py
    count       told of every update: a single one, because this is the way of every token
    restarts    how often an engine was lost after it had been ready
    connection  to the engine process of the moment
    peers       the other front processes
    threads     on which texts and tokenizers are read
    waits       of requests that are not with the engine yet
    """

    def __init__(self, folder: str | Path, settings: Serve, front: int = 0):
        self.settings, self.front = settings, front
        self.stats = Stats()
        self.answers: dict[str, Answer] = {}
        self.watchers: list[Watcher] = []
        self.count: Callable[[Answer, int, Update, Event], None] = lambda *_: None
        self.restarts = 0
        self.waits = Waits()
        self._numbers = count()
        self._live: dict[str, Held] = {}
        self._trial = Trial()
        self._facts: Facts | None = None
        self._intake: Intake | None = None
        fronts = settings.fronts
        self._places = Places(Path(folder) / "places" if fronts > 1 else None, front, fronts)
        self._queue = Queue(self._places)
        self._fault: Fault | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.threads = ThreadPoolExecutor(2, "headrace-text")
        self.connection = Connection(folder, self)
        self.peers = Peers(front, fronts, self.connection.send)

    # -- for routes -------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            raise self._fault or Unreachable(
                f"the model is not ready yet: {self.connection.loading.doing}", hint="ask again in a moment"
            )
        return self._facts

    @property
    def intake(self) -> Intake:
        _ = self.facts
        assert self._intake is not None
        return self._intake

    @property
    def busy(self) -> bool:
        """Whether the engine has work from here."""
        return bool(self._live)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken, because the server stops."""
        return self.waits.over

    @property
    def ready(self) -> bool:
        """Whether the engine works and new requests are welcome; then there are facts, too."""
        met = self._facts is not None
        return met and self.connection.well and not self.draining and self._fault is None

    def submit(
        self,
        requests: Sequence[Request],
        *,
        id: str | None = None,
        timeout_ms: int | None = None,
        kind: str = "",
        trace: str | None = None,
        name: str | None = None,
    ) -> Answer:
        """Hand requests to the engine. `id` names the answer for people; default: the first request's.

        Raises Busy (429) where the queue is full, Unreachable (503) while draining or before the engine was ever
        ready. What the engine itself refuses ends the answer with that fault.
        """
        id = requests[0].id if id is None else id
        self._check()
        answer = Answer(id, requests, self.intake.tokenizer, kind, name)
        if not self._queue.take([len(request.prompt) for request in requests]):
            raise self._busy(len(requests))
        answer.trace, answer.canceller = trace, self._end
        seconds = self.settings.timeout if timeout_ms is None else timeout_ms / 1000
        if seconds is not None:
            answer.timer = self._loop.call_later(seconds, self._too_late, answer, seconds)
        self.answers[id] = answer
        mine = [self._take_in(answer, index, request) for index, request in enumerate(requests)]
        for watcher in self.watchers:
            watcher.submitted(answer)
        self.connection.send(Add(mine))
        return answer

    def admit(self, requests: int) -> None:
        """Raise what `submit` would for so many requests, whose prompts may not be read yet."""
        self._check()
        if not self._queue.fits(requests, 0):
            raise self._busy(requests)

    async def off_loop(self, size: int, function: Callable[[], T]) -> T:
        """Call what tokenizes or renders `size` characters: on another thread where that takes long.

        Raises Unreachable (503) where the server stops before that is done.
        """
        if size < LONG_TEXT:
            return function()
        if self.draining:  # there may be no threads any more
            raise stops()
        async with self.waits.until():
            return await self._loop.run_in_executor(self.threads, function)

    # -- for whoever runs the process -------------------------------------------------------------------------

    async def until_ready(self) -> Facts:
        """Wait for the engine. Raises the Fault that kept it from starting."""
        while not self.connection.up:
            if self._fault is not None:
                raise self._fault
            self._changed.clear()
            await self._changed.wait()
        return self.facts

    async def until_failed(self) -> Fault:
        """Wait for the fault with which the engine is given up."""
        while self._fault is None:
            self._changed.clear()
            await self._changed.wait()
        return self._fault

    async def drain(self, seconds: float | None = None) -> None:
        """Take nothing new, wait for what runs (drain_seconds at most), end what is left with an error."""
        self.waits.end()
        end = monotonic() + (self.settings.drain_seconds if seconds is None else seconds)
        while self._live and monotonic() < end and self._fault is None:
            await asyncio.sleep(0.02)
        if self._live:
            log.warning("%d requests are ended: the server stops", len(self._live))
        self._end_all(stops())

    def fail(self, fault: Fault) -> None:
        """Give up on the engine: everything ends with this fault, nothing new is taken."""
        if self._fault is None:
            self._fault = fault
            self._end_all(fault)
            self._changed.set()

    def close(self) -> None:
        """End everything here and free the socket. Idempotent."""
        self.waits.end()
        self._end_all(stops())
        self.connection.close()
        self._places.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    # -- requests ---------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise where nothing new can be taken, whatever it is."""
        if self._fault is not None:
            raise self._fault
        if self.draining:
            raise stops()
        _ = self.facts

    def _busy(self, requests: int) -> Busy:
        return self._queue.busy(requests, (one.load for one in self._live.values()))

    def _take_in(self, answer: Answer, index: int, request: Request) -> Request:
        """Give a request an id that no other process and no earlier one had, and remember it."""
        request = msgspec.structs.replace(request, id=f"{self.front}.{getpid()}.{next(self._numbers)}")
        self._live[request.id] = Held(answer, index, request, answer.streams[index])
        return request

    def _end(self, answer: Answer, finish: str, fault: Fault | None) -> None:
        """End all that is left of an answer; the engine is told. "timeout" looks like an error to the client."""
        ids = [id for id, one in self._live.items() if one.answer is answer]
        if fault is not None and answer.fault is None:
            answer.fault = fault
        for id in ids:
            event = Event(id, None, "error" if finish == "timeout" else finish)
            self._deliver(self._live[id], event, finish)
        if ids:
            self.connection.send(Cancel(ids))

    def _end_all(self, fault: Fault) -> None:
        for answer in list(self.answers.values()):
            self._end(answer, "error", fault)

    def _too_late(self, answer: Answer, seconds: float) -> None:
        self._end(answer, "timeout", Late(f"the request had {seconds:g} seconds, and they are over"))

    def _deliver(self, one: Held, event: Event, cause: str | None = None) -> bool:
        """Hand an event to whoever waits for it; whether it ends what the engine would go on with.

        `cause` is why it ended where the event does not say so.
        """
        answer = one.answer
        try:
            update = one.stream.take(event)
        except Exception:  # one request whose text cannot be made must not cost others theirs
            log.exception("request %s cannot go on", answer.id)
            answer.fault = answer.fault or Broken(f"request {answer.id} failed", hint=SEE_LOG)
            update, cause = Update(finish="error", cancel=event.finish is None), "error"
        answer.put(one.index, update)
        self.count(answer, one.index, update, event)
        if update.finish:
            self._finish(one, cause or update.finish)
        return update.cancel

    def _finish(self, one: Held, cause: str) -> None:
        """Bookkeeping for a request whose terminal update was delivered."""
        id, answer = one.request.id, one.answer
        del self._live[id]
        own = cause in ("stop", "length")
        self._queue.leave(
            one.begun,
            len(one.request.prompt),
            len(one.stream.token_ids) / one.request.max_tokens if own else None,
        )
        answer.close(cause)
        if not answer.open:
            del self.answers[answer.id]
            for watcher in self.watchers:
                watcher.ended(answer)
        if self._trial.deaths:
            self._send_again(self._trial.forget(id))

    # -- what the engine says ---------------------------------------------------------------------------------

    def take(self, message: Events, now: float) -> None:
        """The events of a step. This is the way of every token: nothing here may cost much."""
        if message.stats is not None:
            self._learn(message.stats)
        live, surplus = self._live, []
        for event in message.events:
            one = live.get(event.id)  # None: it was cancelled meanwhile
            if one is not None and self._take_one(one, event, now):
                surplus.append(event.id)
        if surplus:
            self.connection.send(Cancel(surplus))

    def _take_one(self, one: Held, event: Event, now: float) -> bool:
        """Take an event. Whether the engine must be told that the request is over."""
        answer = one.answer
        if event.token is not None:
            answer.last = now
        if event.scheduled is not None or one.probe or not one.begun:
            self._note(one, event, now)
        if event.finish is not None:
            answer.evictions += event.evictions
            if event.finish == "error" and answer.fault is None:
                answer.fault = Broken(f"request {answer.id} failed in the engine", hint=SEE_LOG)
        return self._deliver(one, event)

    def _learn(self, stats: Stats) -> None:
        self.stats = stats
        self._queue.learn(stats)
        for watcher in self.watchers:
            watcher.measured(stats)

    def _note(self, one: Held, event: Event, now: float) -> None:
        """The first event of a request, or one of a suspect."""
        answer = one.answer
        if not one.begun:
            one.begun = True
            self._queue.begin(len(one.request.prompt))
            answer.scheduled = answer.scheduled or event.scheduled
        if answer.first is None and event.token is not None:
            answer.first = now
        if one.probe:
            one.probe -= 1
            if not one.probe:
                self._send_again(self._trial.acquit(event.id))

    def take_refusals(self, refusals: list[Refusal]) -> None:
        """The engine did not take these."""
        for refusal in refusals:
            if (one := self._live.get(refusal.id)) is not None:
                one.answer.fault = refusal.fault()
                self._deliver(one, Event(refusal.id, None, "error"))

    # -- the engine's life ------------------------------------------------------------------------------------

    def meet(self, facts: Facts, tokenizer: Tokenizer | None) -> None:
        """There is an engine: it is sent all that is open."""
        old = self._intake
        if old is None or old.tokenizer is not tokenizer or old.max_len != facts.max_len:
            self._intake = Intake(
                tokenizer,
                facts.max_len,
                facts.vocab,
                facts.eos_ids,
                guarded=True,
                max_logprobs=self.settings.max_logprobs,
            )
        self._queue.meet(facts, self.settings.queue, self.settings.queue_tokens)
        self._facts = facts  # last: whoever sees them may rely on the rest
        for watcher in self.watchers:
            watcher.met(facts)
        self._send_again(self._trial.release(self._live))
        self._changed.set()

    def mourn(self) -> None:
        """The engine is gone: what it had is sent to the next one, unless it is what kills engines."""
        self.restarts += 1
        for watcher in self.watchers:
            watcher.lost()
        self._learn(Stats())  # the next one may have nothing to do, and so nothing to say
        for answer in self.answers.values():
            answer.resumes += 1
        guilty = self._trial.mourn([id for id, one in self._live.items() if one.begun])
        if guilty is not None and (one := self._live.get(guilty)) is not None:
            log.error("request %s is not tried again: the engine died of it", one.answer.id)
            one.answer.fault = Broken(
                f"the engine died while it worked on request {one.answer.id}, more than once", hint=SEE_LOG
            )
            self._deliver(one, Event(guilty, None, "error"))
        self._changed.set()

    def name_rows(self, pulse: Pulse) -> str:
        """What the engine's step is made of, for the log: as the engine said, else what we know to have begun."""
        live = self._live
        rows = pulse.rows or [
            (id, 0, len(one.request.prompt) + len(one.stream.token_ids))
            for id, one in live.items()
            if one.begun
        ]
        return (
            " ".join(f"{live[id].answer.id if id in live else id}[{a}:{b}]" for id, a, b in rows) or "unknown"
        )

    def _send_again(self, ids: Iterable[str]) -> None:
        """Have the engine go on with these."""
        found = [self._live[id] for id in ids if id in self._live]
        for one in found:
            if one.request.id == self._trial.on_trial:
                one.probe = PROBE
        if found:
            self.connection.send(Add([one.resumed() for one in found]))
