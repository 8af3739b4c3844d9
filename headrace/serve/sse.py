"""Server-sent events written as bytes: templates around escaped text, no object per token."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from headrace.base.errors import Broken, Fault
from headrace.engine.stream import Update
from headrace.serve import errors
from headrace.serve.answer import Answer
from headrace.serve.settings import Serve

DONE = b"data: [DONE]\n\n"
PING = b": still here\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects events before it passes them on makes them late
]
FAILED = frozenset({"error", "timeout"})
"""Endings whose reason is in `Answer.fault`."""

ABORT = "headrace.abort"
"""In `scope["extensions"]`: closes the connection at once, whatever is still in its buffers."""

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
Updates = Sequence[tuple[int, Update]]


def event(body: Any) -> bytes:
    """One frame without a name."""
    return b"data: %b\n\n" % encode(body)


def error_event(fault: Fault) -> bytes:
    """The frame that tells of a fault in mid-stream."""
    return event(errors.described(fault))


def fault_of(answer: Answer) -> Fault:
    """Why an answer failed."""
    return answer.fault or Broken("the request failed", hint="the server's log says why")


def failed(answer: Answer) -> bool:
    """Whether one of its streams has ended with a fault."""
    return answer.fault is not None or answer.cause in FAILED


class Frames(Protocol):
    """Turns what comes from the engine into frames of one dialect."""

    def push(self, updates: Updates) -> bytes:
        """Frames for these updates; none where they show nothing."""
        ...

    def end(self) -> bytes:
        """Frames after the last update, the closing one included."""
        ...

    def fail(self, fault: Fault) -> bytes:
        """Frames that end the stream with a fault."""
        ...


class EventStream(Response):
    """An ASGI response that sends what an answer brings, and ends the answer when nobody reads it any more.

    Nothing is sent before the first token (or the first ping), so that what fails until then has its own status.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, frames: Frames, settings: Serve):
        super().__init__()
        self.answer, self.frames = answer, frames
        self.ping, self.patience = settings.ping_seconds, settings.send_seconds
        self.gone = self.begun = False
        self._now = asyncio.get_running_loop().time
        self._since = self._now()
        self._sending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._tasks = [asyncio.create_task(self._watch(scope, receive, send))]
        try:
            await self._run(scope, receive, send)
        finally:
            self.answer.cancel()
            for task in self._tasks:
                task.cancel()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, push = self.answer, self.frames.push
        while updates := await answer.next():
            if self.gone:
                return
            if not self.begun and failed(answer) and not any(stream.token_ids for stream in answer.streams):
                return await errors.answer(fault_of(answer))(scope, receive, send)
            if failed(answer):  # a frame of its own says it
                updates = [(i, replace(u, finish=None) if u.finish in FAILED else u) for i, u in updates]
            if body := push(updates):
                await self._send(body, send)
        if not self.gone:
            await self._send(
                self.frames.fail(fault_of(answer)) if failed(answer) else self.frames.end(), send
            )
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, body: bytes, send: Send) -> None:
        self._since, self._sending = self._now(), True
        if not self.begun:
            self.begun = True
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending = False

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Notice that the client has left or reads nothing; speak up after long silence."""
        every = min(self.ping or self.patience, self.patience) / 2
        while not self.gone:
            try:
                async with asyncio.timeout(every):
                    message: Message = await receive()
            except TimeoutError:
                self._look(scope, send)
                continue
            if message["type"] == "http.disconnect":
                self._leave()

    def _look(self, scope: Scope, send: Send) -> None:
        silent = self._now() - self._since
        if self._sending:
            if silent > self.patience and (abort := scope.get("extensions", {}).get(ABORT)):
                self._leave()
                abort()
        elif self.ping and silent >= self.ping / 2:
            # A task of its own: whoever reads nothing does not take this either, and is to be looked at again.
            self._tasks[1:] = [asyncio.create_task(self._send(PING, send))]

    def _leave(self) -> None:
        self.gone = True
        self.answer.cancel()


class Whole(Response):
    """An ASGI response that waits for all of an answer and sends it at once; ends it when the client leaves."""

    def __init__(self, answer: Answer, body: Callable[[], Any]):
        super().__init__()
        self.answer, self.body_of = answer, body
        self.gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            await self.answer.end()
        finally:
            self.answer.cancel()
            watch.cancel()
        if self.gone:
            return
        if failed(self.answer):
            response = errors.answer(fault_of(self.answer))
        else:
            response = Response(encode(self.body_of()), media_type=errors.JSON)
        await response(scope, receive, send)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.answer.cancel()
