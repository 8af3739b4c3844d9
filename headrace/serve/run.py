"""A front process from its start to its end: front end, watchers, app and uvicorn around each other, and signals."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from headrace.base.errors import Fault
from headrace.base.loop import runner
from headrace.serve.app import make_app
from headrace.serve.frontend import Frontend
from headrace.serve.observe import Observers, Scrape, make_router, observe
from headrace.serve.server import Server, allow_files, listen, url, uvicorn_config
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import Supervisor
from headrace.serve.wire import Facts
from headrace.serve.workers import Workers

log = logging.getLogger(__name__)

Said = Callable[[Facts, str], None]
"""Told once, when requests can be answered: what the engine is, and where the server is reached."""

Notify = Callable[[str, float], None]
"""Told how far an engine is that starts: what it does, and which part of that is done, 0 to 1."""


def serve(
    config: ServeConfig, supervisor: Supervisor, said: Said, notify: Notify = lambda doing, part: None
) -> None:
    """Be the first front process, until a signal or a fault ends it. The engine was started before this was imported.

    Raises the Fault that kept the engine from starting, or with which it was given up.
    """
    workers = None
    try:
        allow_files()
        sock = listen(config.serve)
        workers = Workers(config, supervisor.folder, sock)
        with runner() as loop:
            loop.run(first(config, supervisor, workers, sock, (said, notify)))
    finally:
        if workers is not None:
            workers.stop()
        supervisor.stop()


async def first(
    config: ServeConfig,
    supervisor: Supervisor,
    workers: Workers,
    sock: socket.socket,
    told: tuple[Said, Notify],
) -> None:
    """The first front process: it also looks after the engine and the other fronts."""
    said, notify = told
    front = Frontend(supervisor.folder, config.serve)
    front.connection.on_stall, front.connection.on_loading = supervisor.restart, notify
    supervisor.attach(asyncio.get_running_loop(), front.connection.lose, front.fail)
    workers.attach(front.fail)

    async def tell() -> None:
        with suppress(Fault):  # it reaches whoever runs us by another way
            said(await front.until_ready(), url(config.serve, sock))

    telling = asyncio.create_task(tell())
    try:
        await answer(config, front, sock, supervisor.folder, workers.terminate)
    finally:
        telling.cancel()


async def answer(
    config: ServeConfig,
    front: Frontend,
    sock: socket.socket,
    folder: Path,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Answer HTTP until SIGTERM or SIGINT, then let requests end; a second signal ends them at once.

    `stopping` is called when this begins to end. Raises the Fault with which the engine is given up.
    """
    server, observers = build(config, front, folder)
    loop, stop, hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    serving = asyncio.create_task(server.serve([sock]))
    failed = asyncio.create_task(front.until_failed())
    waits = [failed, asyncio.create_task(stop.wait()), serving]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        stopping()
        if stop.is_set():
            if not front.front:  # of several processes one says it
                log.warning("stopping: requests that run have %g seconds to end", config.serve.drain_seconds)
            draining = asyncio.create_task(front.drain())
            await asyncio.wait(
                [draining, asyncio.create_task(hurry.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            draining.cancel()
        front.close()  # ends what is left, so that its last words can still be sent
        server.end(hurry.is_set())
        await serving
        if failed.done():
            raise failed.result()
    finally:
        for task in waits:
            task.cancel()
        front.close()
        observers.close()


def build(config: ServeConfig, front: Frontend, folder: Path) -> tuple[Server, Observers]:
    """The server of a front, and who watches it. Raises Refused for settings that cannot be."""
    settings = config.serve
    shared = folder if settings.fronts > 1 else None
    observers = observe(front, settings, config.served[0], shared)
    routers, told = [make_router(front, observers)], observers.metrics.http
    app = make_app(front, settings, routers=routers, told=told, shared=shared)
    return Server(uvicorn_config(Scrape(app, front, observers, app.state.door), settings)), observers
