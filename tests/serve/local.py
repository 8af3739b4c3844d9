"""A front without processes: the engine runs on a thread of the test; and a server around it on a free port."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI

from headrace.base.errors import Fault
from headrace.engine.request import Event
from headrace.engine.start import Started, start
from headrace.serve.app import make_app
from headrace.serve.folder import Folder
from headrace.serve.frontend import Frontend
from headrace.serve.loop import Host
from headrace.serve.server import listen, uvicorn_config
from headrace.serve.settings import Serve
from headrace.serve.wire import Cancel, Facts, Stats
from headrace.text.tokenizer import Tokenizer
from tests import tiny
from tests.serve.watched import FACTS


class Steps:
    """An engine as the loop wants it. `held` cleared: it stands still."""

    def __init__(self, engine: Any):
        self._engine, self.add, self.cancel = engine, engine.add, engine.cancel
        self.held = threading.Event()
        self.held.set()

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def step(self) -> list[Event]:
        self.held.wait()
        return self._engine.step()

    def report(self, stats: Stats) -> None:
        stats.running = int(self.busy)

    def rows(self) -> list[tuple[str, int, int]]:
        return []


class LocalFront(Frontend):
    """A front whose engine is on a thread."""

    def __init__(self, started: Started, settings: Serve, folder: Path):
        super().__init__(folder, replace(settings, workers=1))
        self.started, self._over = started, threading.Event()
        steps = Steps(started.engine)
        self.held = steps.held
        self._thread = threading.Thread(target=self._run, args=(folder, steps), daemon=True)
        self._thread.start()

    def meet(self, facts: Facts, tokenizer: Tokenizer | None) -> None:
        self._intake = self.started.intake
        super().meet(facts, self._intake.tokenizer)

    def interrupt(self, fault: Fault) -> None:
        """End everything with a fault; from any thread."""
        self._loop.call_soon_threadsafe(self._end_all, fault)

    @contextmanager
    def without_engine(self) -> Iterator[None]:
        """As before the engine was ready for the first time."""
        facts, self._facts = self._facts, None
        try:
            yield
        finally:
            self._facts = facts

    async def leave(self) -> None:
        """End everything, and the engine's thread."""
        self._over.set()
        self.held.set()
        await self.drain(0)
        self.connection.send(Cancel([]))  # if only to wake it
        await asyncio.to_thread(self._thread.join, 20)
        self.close()

    def _run(self, folder: Path, steps: Steps) -> None:
        host, plan, intake = Host(folder, 0, 1), self.started.plan, self.started.intake
        host.say("starting", 0.0)
        facts = msgspec.structs.replace(
            FACTS, model="tiny", served=("tiny", "second"), path=str(plan.path), max_len=intake.max_len,
            vocab=intake.vocab, eos_ids=intake.eos_ids, defaults=self.started.defaults, rows=plan.rows,
        )  # fmt: skip
        host.serve(steps, facts, lambda: self._over.is_set() and not steps.busy)
        host.close()


class Running:
    """A server on a thread. `url` without a slash at the end."""

    def __init__(self, url: str, front: LocalFront, app: FastAPI, server: uvicorn.Server):
        self.url, self.front, self.app, self.server = url, front, app, server

    def connect(self) -> socket.socket:
        """A connection on which nothing has been said."""
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=120)


def started(folder: Path) -> Started:
    """A tiny random model, ready to run."""
    return start(tiny.config(tiny.folder(folder)))


@contextmanager
def serving(
    started: Started, settings: Serve | None = None, *, buffer: int | None = None, **more: Any
) -> Iterator[Running]:
    """A server around a started engine until the block ends. `buffer`: bytes the system holds per connection."""
    settings = settings or Serve(port=0)
    sock, folder = listen(settings), Folder()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    begun, box = threading.Event(), {}

    async def main() -> None:
        front = LocalFront(started, settings, folder.path)
        app = make_app(front, settings, **more)
        server = uvicorn.Server(uvicorn_config(app, settings))
        box.update(front=front, app=app, server=server)
        await front.until_ready()
        begun.set()
        try:
            await server.serve([sock])
        finally:
            await front.leave()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert begun.wait(120)
    scheme = "https" if settings.ssl_certfile else "http"
    url = f"{scheme}://127.0.0.1:{sock.getsockname()[1]}"
    try:
        yield Running(url, box["front"], box["app"], box["server"])
    finally:
        box["server"].should_exit = True
        thread.join(60)
        folder.remove()
