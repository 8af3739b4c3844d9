"""AsyncLLM: the same engine for an event loop; requests stream, and end when their iterator is closed."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, assert_never

from headrace.api.llm import LLM, salt_of, text_of
from headrace.api.outputs import RequestOutput, gathered
from headrace.base.errors import Broken, Fault, Refused
from headrace.engine.intake import Prompt
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.stream import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where the events of a request go."""

    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[Event | Fault]"


@dataclass(frozen=True, slots=True)
class Add:
    request: Request
    box: Mailbox


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Message = Add | Cancel | Stop


class AsyncLLM:
    """Runs an engine in a thread of its own. Takes what `LLM` takes.

    The engine's thread sees token ids only; text is made here, on the event loop. Call `shutdown` at the end.
    May be used from several event loops.
    """

    def __init__(self, model: str | None = None, **settings: Any):
        llm = LLM(model, **settings)
        self.plan, self.intake, self.defaults = llm.plan, llm.intake, llm.defaults
        self._ids = count()
        self._open: dict[str, list[Request]] = {}  # by the caller's id; the engine's ids are never used twice
        self._lock = Lock()
        self._stopped = False
        self._loop = _Loop(llm)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncGenerator[RequestOutput]:
        """The answers to one prompt, whenever one of them has grown; the last has `finished` set.

        Raises Refused or TooLong before anything runs. Leaving the loop, or cancelling the task, ends the request.
        """
        number = next(self._ids)
        id = request_id if request_id is not None else f"request-{number}"
        requests = self.intake.requests(
            str(number),
            prompt,
            sampling_params or self.defaults,
            salt=cache_salt or salt_of(prompt),
            priority=priority,
        )
        box = Mailbox(asyncio.get_running_loop(), asyncio.Queue())
        self._submit(id, requests, box)
        left = {request.id for request in requests}
        try:
            async for output in self._follow(id, text_of(prompt), requests, box, left):
                yield output
        finally:
            del self._open[id]
            for request in left:
                self._loop.inbox.put(Cancel(request))

    async def abort(self, request_id: str) -> None:
        """End a request; its iterator yields a last output with finish_reason "abort"."""
        for request in self._open.get(request_id, []):
            self._loop.inbox.put(Cancel(request.id))

    def shutdown(self) -> None:
        """Stop the engine's thread. Requests that still run end with Broken."""
        with self._lock:
            self._stopped = True
            self._loop.inbox.put(Stop())
        self._loop.thread.join()

    def _submit(self, id: str, requests: list[Request], box: Mailbox) -> None:
        with self._lock:  # no Add comes after Stop, and no id is taken twice
            if self._stopped:
                raise Broken("the engine has been shut down")
            if id in self._open:
                raise Refused(f"request id {id!r} is in use", param="request_id")
            self._open[id] = requests
            for request in requests:
                self._loop.inbox.put(Add(request, box))

    async def _follow(
        self, id: str, text: str | None, requests: list[Request], box: Mailbox, left: set[str]
    ) -> AsyncGenerator[RequestOutput]:
        """Outputs until nothing is `left`, one for all events that have come in meanwhile."""
        tokenizer = self.intake.tokenizer
        streams = {request.id: Stream(request, tokenizer) for request in requests}
        while left:
            events = [await box.queue.get()]
            while not box.queue.empty():
                events.append(box.queue.get_nowait())
            for event in events:
                if isinstance(event, Fault):
                    left.clear()  # all of them ended with it
                    raise event
                update = streams[event.id].take(event)
                if update.cancel:
                    self._loop.inbox.put(Cancel(event.id))
                if update.finish:
                    left.discard(event.id)
            yield gathered(id, text, list(streams.values()), tokenizer, finished=not left)


class _Loop:
    """The engine's thread. Nobody else touches the engine, or knows who waits for what."""

    def __init__(self, llm: LLM):
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self._engine = llm.local.engine
        self._boxes: dict[str, Mailbox] = {}
        self._fault: Broken | None = None
        self.thread = Thread(target=self._serve, name="headrace-engine", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            while self._take_all():
                self._post(self._engine.step())
            self._fault = Broken("the engine has been shut down")
        except Exception as error:  # the loop that must not die silently: tell every request
            log.exception("the engine's thread failed")
            self._fault = Broken(f"the engine failed: {error}", hint="the whole error is in the log")
            self._fail_all()
            while self._take(self.inbox.get()):
                pass
        self._fail_all()

    def _take_all(self) -> bool:
        """Take what came in; wait for something where there is nothing to do. False to stop."""
        while not self.inbox.empty() or not self._engine.busy:
            if not self._take(self.inbox.get()):
                return False
        return True

    def _take(self, message: Message) -> bool:
        match message:
            case Add(request, box):
                self._boxes[request.id] = box
                try:
                    if self._fault is not None:
                        raise self._fault
                    self._engine.add(request)
                except Fault as fault:
                    self._post_fault(request.id, fault)
            case Cancel(id):
                event = self._engine.cancel(id)
                self._post([event] if event is not None else [])
            case Stop():
                return False
            case _:
                assert_never(message)
        return True

    def _post(self, events: list[Event]) -> None:
        """Hand a step's events over, one call per event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Event | Fault]]] = {}
        for event in events:
            box = self._boxes[event.id]
            by_loop.setdefault(box.loop, []).append((box, event))
            if event.finish:
                del self._boxes[event.id]
        for loop, mail in by_loop.items():
            _call(loop, mail)

    def _post_fault(self, id: str, fault: Fault) -> None:
        box = self._boxes.pop(id)
        _call(box.loop, [(box, fault)])

    def _fail_all(self) -> None:
        assert self._fault is not None
        for id in list(self._boxes):
            self._post_fault(id, self._fault)


def _deliver(mail: list[tuple[Mailbox, Event | Fault]]) -> None:
    for box, event in mail:
        box.queue.put_nowait(event)


def _call(loop: asyncio.AbstractEventLoop, mail: list[tuple[Mailbox, Event | Fault]]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody is left to read it
        loop.call_soon_threadsafe(_deliver, mail)
