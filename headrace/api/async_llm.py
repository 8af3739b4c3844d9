"""AsyncLLM: the same engine for an event loop; requests stream, and end when their iterator is closed."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import Thread
from typing import Any, assert_never

from headrace.api.llm import LLM
from headrace.api.outputs import RequestOutput, completion, prompt_table
from headrace.base.errors import Broken, Fault, Refused
from headrace.engine.intake import Prompt
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.stream import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Add:
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Message = Add | Cancel | Stop


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where the events of a request go."""

    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[Event | Fault]"


class AsyncLLM:
    """Runs an engine in a thread of its own. Takes what `LLM` takes.

    The engine's thread sees token ids only; text is made here, on the event loop. Call `shutdown` at the end.
    """

    def __init__(self, model: str | None = None, **settings: Any):
        llm = LLM(model, **settings)
        self.plan, self.intake, self.defaults = llm.plan, llm.intake, llm.defaults
        self._engine = llm.local.engine
        self._ids = count()
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._mail: dict[str, Mailbox] = {}
        self._thread = Thread(target=self._serve, name="headrace-engine", daemon=True)
        self._thread.start()

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
        if not self._thread.is_alive():
            raise Broken("the engine has stopped", hint="its last error is in the log")
        id = request_id if request_id is not None else f"request-{next(self._ids)}"
        requests = self.intake.requests(
            id, prompt, sampling_params or self.defaults, salt=cache_salt, priority=priority
        )
        if any(request.id in self._mail for request in requests):
            raise Refused(f"request id {id!r} is in use", param="request_id")
        box = Mailbox(asyncio.get_running_loop(), asyncio.Queue())
        for request in requests:
            self._mail[request.id] = box
            self._inbox.put(Add(request))
        try:
            async for output in self._follow(id, requests, box):
                yield output
        finally:
            for request in requests:
                if self._mail.pop(request.id, None):
                    self._inbox.put(Cancel(request.id))

    async def abort(self, request_id: str) -> None:
        """End a request; its iterator yields a last output with finish_reason "abort"."""
        for id in list(self._mail):
            if id == request_id or id.startswith(f"{request_id}/"):
                self._inbox.put(Cancel(id))

    def shutdown(self) -> None:
        """Stop the engine's thread. Requests that still run end with an error."""
        self._inbox.put(Stop())
        self._thread.join()

    async def _follow(self, id: str, requests: list[Request], box: Mailbox) -> AsyncGenerator[RequestOutput]:
        tokenizer = self.intake.tokenizer
        streams = {request.id: Stream(request, tokenizer) for request in requests}
        first = streams[requests[0].id]
        left = len(requests)
        while left:
            event = await box.queue.get()
            if isinstance(event, Fault):
                raise event
            stream = streams[event.id]
            if stream.finish:
                continue
            update = stream.take(event)
            if update.cancel:
                self._inbox.put(Cancel(event.id))
            if update.finish:
                left -= 1
                self._mail.pop(event.id, None)
            yield RequestOutput(
                request_id=id,
                prompt=None,
                prompt_token_ids=list(requests[0].prompt),
                outputs=[completion(i, streams[r.id], tokenizer) for i, r in enumerate(requests)],
                finished=not left,
                prompt_logprobs=prompt_table(first, tokenizer),
                num_cached_tokens=first.cached,
            )

    # -- the engine's thread ----------------------------------------------------------------------

    def _serve(self) -> None:
        fault = Broken("the engine has been shut down")
        try:
            while self._handle_all():
                self._post(list(self._engine.step()))
        except Exception as error:  # noqa: BLE001 - the loop that must not die silently: tell every request
            log.exception("the engine's thread failed")
            fault = Broken(f"the engine failed: {error}")
        for id in list(self._mail):
            self._post_fault(id, fault)

    def _handle_all(self) -> bool:
        """Take what came in; wait for something where there is nothing to do. False to stop."""
        while not self._inbox.empty() or not self._engine.busy:
            match message := self._inbox.get():
                case Add(request):
                    try:
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
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Event]]] = {}
        for event in events:
            if (box := self._mail.get(event.id)) is not None:
                by_loop.setdefault(box.loop, []).append((box, event))
        for loop, mail in by_loop.items():
            _call(loop, mail)

    def _post_fault(self, id: str, fault: Fault) -> None:
        if (box := self._mail.get(id)) is not None:
            _call(box.loop, [(box, fault)])


def _deliver(mail: list[tuple[Mailbox, Event | Fault]]) -> None:
    for box, event in mail:
        box.queue.put_nowait(event)


def _call(loop: asyncio.AbstractEventLoop, mail: Any) -> None:
    if not loop.is_closed():  # nobody is left to read it
        loop.call_soon_threadsafe(_deliver, mail)
