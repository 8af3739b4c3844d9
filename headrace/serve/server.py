"""The socket, uvicorn on it, and what uvicorn leaves open: limits on headers, slow senders, an orderly end."""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from headrace.base.errors import Refused, TooLarge
from headrace.base.log import LOG
from headrace.serve import errors
from headrace.serve.settings import Serve
from headrace.serve.sse import ABORT

try:  # compiled: a fifth of the cost of a streamed token less
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # pragma: no cover
    HttpToolsProtocol = None

BACKLOG = 2048
FILES = 65536
"""Connections and other open files that are asked for; a shell's usual 1024 are fewer than may wait for the engine."""
GRACE = 4.0
"""Seconds that readers get for what is left of their answers when the server ends."""
PIPELINED = 16
"""Requests that a connection may bring while one is answered; then nothing is read from it."""
KEEP_ALIVE = 75
"""Seconds an idle connection stays open: longer than most clients and proxies keep theirs, so that they close it."""


class _Bounded:
    """What both of uvicorn's protocols lack: the time that a request's head may take, and a way to hang up.

    Bytes of a head that is not complete keep a connection open for `seconds` and no longer.
    """

    transport: Any
    cycle: Any
    loop: asyncio.AbstractEventLoop
    scope: Any
    seconds = 60.0
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._alarm = self.loop.call_later(self.seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not None and not self.cycle.response_complete:
            self._calm()  # a request is under way; its body has a limit of its own
        elif self._alarm is None and not self.transport.is_closing():
            self._alarm = self.loop.call_later(self.seconds, self.transport.abort)

    def _calm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def _refusal(fault: Refused) -> bytes:
    body = msgspec.json.encode(errors.described(fault))
    head = (
        f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}\r\ncontent-type: {errors.JSON}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class _H11(_Bounded, H11Protocol):
    """uvicorn's protocol in pure Python; the library bounds the head."""

    def handle_events(self) -> None:
        super().handle_events()
        if self.scope is not None:
            self.scope.setdefault("extensions", {})[ABORT] = self.transport.abort

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_refusal(Refused(msg)))
        self.transport.close()


class _Pipelined:
    """What uvicorn's fast protocol lacks: when a client leaves, all its requests are told, not the latest alone."""

    cycle: Any
    flow: Any

    def connection_made(self, transport: Any) -> None:
        self.earlier: deque[Any] = deque()  # requests that are not answered yet, without the latest
        super().connection_made(transport)  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        for cycle in self.earlier:
            cycle.disconnected = True
            cycle.message_event.set()

    def on_headers_complete(self) -> None:
        before, earlier = self.cycle, self.earlier
        super().on_headers_complete()  # type: ignore[misc]
        while earlier and earlier[0].response_complete:
            earlier.popleft()
        if before is not None and not before.response_complete:
            earlier.append(before)
            if len(earlier) < PIPELINED:  # else nothing is read, nor is seen that the client leaves
                self.flow.resume_reading()


def _http_tools(most: int) -> Any:
    """uvicorn's fast protocol, which has no bound on the head of a request of its own."""
    assert HttpToolsProtocol is not None

    class HttpTools(_Bounded, _Pipelined, HttpToolsProtocol):
        head = 0

        def on_message_begin(self) -> None:
            self.head = 0
            super().on_message_begin()
            self.scope["extensions"] = {ABORT: self.transport.abort}

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

        def _count(self, size: int) -> None:
            self.head += size
            if self.head > most:
                raise TooLarge("")  # the parser stops, and `send_400_response` is called

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # A name or value that is not complete is held by the parser, which tells nobody how long it is.
            waiting = self.cycle is None or self.cycle.response_complete
            self.unparsed = self.unparsed + len(data) if waiting else 0
            if self.unparsed > 2 * most and not self.transport.is_closing():
                self.send_400_response("")

        unparsed = 0

        def send_400_response(self, msg: str) -> None:
            large = self.head > most or self.unparsed > 2 * most
            fault = TooLarge(f"the headers are larger than {most} bytes") if large else Refused(msg)
            self.transport.write(_refusal(fault))
            self.transport.close()

    return HttpTools


def uvicorn_config(app: ASGIApp, settings: Serve) -> uvicorn.Config:
    """How uvicorn is run: quiet, HTTP only, with the fast protocol and loop where they are installed."""
    theirs = logging.getLogger("uvicorn")  # says what it has to say where we do
    theirs.handlers, theirs.propagate = [*LOG.handlers], False
    theirs.setLevel(max(LOG.level, logging.WARNING))
    fast = HttpToolsProtocol is not None
    protocol = _http_tools(settings.max_header) if fast else _H11
    protocol.seconds = settings.body_seconds
    return uvicorn.Config(
        app,
        loop="auto",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,  # after GRACE nobody should be left
        h11_max_incomplete_event_size=settings.max_header,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )


def check_tls(settings: Serve) -> None:
    """Raise Refused for a certificate or key that cannot be used."""
    if settings.ssl_keyfile and not settings.ssl_certfile:
        raise Refused("a private key is given without a certificate", param="serve.ssl_keyfile")
    if not settings.ssl_certfile:
        return
    certfile, hint = settings.ssl_certfile, "give PEM files with --ssl-certfile and --ssl-keyfile"
    for name, file in (("certfile", certfile), ("keyfile", settings.ssl_keyfile or certfile)):
        try:
            Path(file).open("rb").close()
        except OSError as fault:
            raise Refused(
                f"{file!r} cannot be read: {fault.strerror}",
                param=f"serve.ssl_{name}",
                hint=hint,
            ) from fault
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, settings.ssl_keyfile)
    except OSError as fault:
        raise Refused(
            f"the certificate or its key cannot be used: {fault}", param="serve.ssl_certfile", hint=hint
        ) from fault


def allow_files() -> None:
    """Let this process and its children have more open files, as far as the system lets us.

    Connections beyond the limit would be closed without a word, and nobody told to come back later.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def listen(settings: Serve) -> socket.socket:
    """The socket that all front processes accept on. Raises Refused where it cannot be had."""
    check_tls(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except (OSError, TypeError) as fault:
        sock.close()
        raise _unbound(settings, fault) from fault
    sock.listen(BACKLOG)
    sock.set_inheritable(True)
    return sock


def _unbound(settings: Serve, fault: OSError | TypeError) -> Refused:
    why = fault.strerror if isinstance(fault, OSError) else "this cannot be a name"
    said = f"{settings.host}:{settings.port} cannot be listened on: {why}"
    no_name = isinstance(fault, socket.gaierror | TypeError)
    if no_name or fault.errno == errno.EADDRNOTAVAIL:
        return Refused(
            said,
            param="serve.host",
            hint="give --host an address of this machine, or 0.0.0.0 for all it has",
        )
    return Refused(said, param="serve.port", hint="give another --port, or 0 for any that is free")


def url(settings: Serve, sock: socket.socket) -> str:
    """Where the server is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


class Server(uvicorn.Server):
    """uvicorn without signal handlers: whoever runs it says when it ends."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._over = asyncio.Event()

    def end(self, hurry: bool) -> None:
        """Have it end, when requests that run have been answered or `hurry`."""
        self.should_exit, self.force_exit = True, hurry
        self._over.set()
        asyncio.get_running_loop().call_later(GRACE, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def main_loop(self) -> None:
        """Only the date in the heads of answers needs a clock; uvicorn's own loop wakes up ten times a second."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._over.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
