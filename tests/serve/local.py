"""A front without processes: the engine runs on a thread of the test; and a server around it on a free port."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI

from headrace.base.errors import Busy, Fault, Late, Unreachable
from headrace.engine.request import Event, Request
from headrace.engine.start import Started, start
from headrace.serve.answer import Answer
from headrace.serve.app import make_app
from headrace.serve.server import listen, uvicorn_config
from headrace.serve.settings import Serve
from headrace.serve.wire import Facts, Stats
from tests import tiny

T = TypeVar("T")


class LocalFront:
    """Does what serve/frontend.py says, on one event loop, with an engine that has been started."""

    def __init__(self, started: Started, settings: Serve, served: tuple[str, ...] = ("tiny", "second")):
        plan = started.plan
        self.started, self.settings = started, settings
        self.intake, self.defaults = started.intake, started.defaults
        self._facts = Facts(
            model="tiny", served=served, path=str(plan.path), created=1_700_000_000, max_len=plan.max_len,
            vocab=started.intake.vocab, eos_ids=started.intake.eos_ids, defaults=started.defaults,
            kv_blocks=plan.kv_blocks, block=plan.block, rows=plan.rows, tokens=plan.tokens, kv_tokens=plan.kv_tokens,
            plan="", memory={}, device="cpu", dtype="float32", kv_dtype="float32",
        )  # fmt: skip
        self.stats = Stats()
        self.watchers: list[Any] = []
        self.answers: dict[str, Answer] = {}
        self.refused: list[tuple[str, Fault]] = []
        self.missing = self.full = self.draining = False
        self.held = threading.Event()
        self.held.set()  # cleared: the engine stands still
        self._live: dict[str, tuple[Answer, int]] = {}
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def facts(self) -> Facts:
        if self.missing:
            raise Unreachable("the model is not ready yet: loading")
        return self._facts

    @property
    def ready(self) -> bool:
        return not (self.missing or self.draining)

    async def off_loop(self, size: int, function: Callable[[], T]) -> T:
        return function()

    def refuse(self, kind: str, fault: Fault) -> None:
        self.refused.append((kind, fault))

    def admit(self, requests: int) -> None:
        if self.full:
            raise Busy("the queue is full", retry_after=2.3)

    def submit(
        self, requests: Sequence[Request], *, id: str, timeout_ms: int | None, kind: str, **more: Any
    ) -> Answer:
        answer = Answer(id, requests, self.intake.tokenizer, kind, more["name"])
        answer.canceller = self._end
        if timeout_ms is not None:
            fault = Late("time is over")
            answer.timer = self._loop.call_later(timeout_ms / 1e3, self._end, answer, "error", fault)
        self.answers[id] = answer
        for index, request in enumerate(requests):
            self._count += 1
            unique = msgspec.structs.replace(request, id=str(self._count))
            self._live[unique.id] = (answer, index)
            self._inbox.put(unique)
        return answer

    def fail(self, fault: Fault) -> None:
        """End everything with a fault; from any thread."""
        for answer in list(self.answers.values()):
            self._loop.call_soon_threadsafe(self._end, answer, "error", fault)

    def close(self) -> None:
        self.held.set()
        self._inbox.put(None)
        self._thread.join()

    def _end(self, answer: Answer, finish: str, fault: Fault | None) -> None:
        answer.fault = answer.fault or fault
        for id in [id for id, (one, _) in self._live.items() if one is answer]:
            self._inbox.put(id)
            self._deliver([Event(id, None, finish)])

    def _serve(self) -> None:
        engine = self.started.engine
        while True:
            self.held.wait()
            while not self._inbox.empty() or not engine.busy:
                message = self._inbox.get()
                if message is None:
                    for id in list(engine.scheduler.live):
                        engine.cancel(id)
                    return
                if isinstance(message, str):
                    engine.cancel(message)
                else:
                    engine.add(message)
            if events := engine.step():
                self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if (found := self._live.get(event.id)) is None:
                continue
            answer, index = found
            update = answer.streams[index].take(event)
            answer.put(index, update)
            if update.cancel:
                self._inbox.put(event.id)
            if update.finish:
                del self._live[event.id]
                answer.close("stop" if update.finish == "tool_calls" else update.finish)
                if not answer.open:
                    del self.answers[answer.id]


class Running:
    """A server on a thread. `url` without a slash at the end."""

    def __init__(self, url: str, front: LocalFront, app: FastAPI, server: uvicorn.Server):
        self.url, self.front, self.app, self.server = url, front, app, server


def started(folder: Path) -> Started:
    """A tiny random model, ready to run."""
    return start(tiny.config(tiny.folder(folder)))


@contextmanager
def serving(
    started: Started, settings: Serve | None = None, *, buffer: int | None = None, **more: Any
) -> Iterator[Running]:
    """A server around a started engine until the block ends. `buffer`: bytes the system holds per connection."""
    settings = settings or Serve(port=0)
    sock = listen(settings)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    begun, box = threading.Event(), {}

    async def main() -> None:
        front = LocalFront(started, settings)
        app = make_app(front, settings, **more)  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn_config(app, settings))
        box.update(front=front, app=app, server=server)
        begun.set()
        try:
            await server.serve([sock])
        finally:
            front.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    begun.wait(20)
    scheme = "https" if settings.ssl_certfile else "http"
    try:
        yield Running(
            f"{scheme}://127.0.0.1:{sock.getsockname()[1]}", box["front"], box["app"], box["server"]
        )
    finally:
        box["server"].should_exit = True
        thread.join(20)
