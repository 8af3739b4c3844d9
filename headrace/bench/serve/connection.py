"""One connection to a server, used for one request after another."""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import msgspec

from headrace.base.errors import Refused
from headrace.bench.serve.http import Incoming, Malformed


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go. `headers` are sent with each of them; `verify` False takes any certificate."""

    url: str
    host: str
    port: int
    secure: bool
    path: str
    headers: dict[str, str] = {}
    verify: bool = True

    @classmethod
    def of(cls, url: str, headers: dict[str, str], verify: bool = True) -> "Target":
        """Raises Refused for what is no http(s) address. A path of `/v1` at its end is taken off."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port, host, _ = parts.port, (parts.hostname or "").encode("idna"), parts.path.encode("ascii")
            if parts.scheme not in ("http", "https") or not host:
                raise ValueError(url)
        except ValueError:
            raise Refused(
                f"--url is {url!r}; expected an address such as http://127.0.0.1:8000", param="url"
            ) from None
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(
            url=f"{parts.scheme}://{parts.netloc}{path}",
            host=host.decode(),
            port=port or (443 if secure else 80),
            secure=secure,
            path=path,
            headers=headers,
            verify=verify,
        )

    def head(self, method: str, path: str, length: int) -> bytes:
        """The head of a request."""
        name = self.host if ":" not in self.host else f"[{self.host}]"
        lines = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"Host: {name}:{self.port}",
            f"Content-Length: {length}",
        ]
        fields = {"Content-Type": "application/json", "Accept": "*/*", **self.headers}
        lines += [f"{key}: {value}" for key, value in fields.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @property
    def ssl(self) -> ssl.SSLContext | None:
        """How a secure connection is made."""
        if not self.secure:
            return None
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class Left(Exception):
    """Raised by whoever takes a body: it has had enough, the connection is to be closed."""


class Connection(asyncio.Protocol):
    """Sends bytes and reads one answer at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._incoming: Incoming | None = None
        self._over: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether another request may be sent."""
        return not self.closed and self._incoming is None

    async def ask(self, request: bytes, body: Callable[[bytes], None]) -> Incoming:
        """Send a request and wait for the end of its answer. Raises OSError, Malformed or Left."""
        assert self.transport is not None and self.idle
        incoming = self._incoming = Incoming(body)
        over = self._over = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            await over
        except BaseException:
            self.close()
            raise
        finally:
            self._incoming = self._over = None
        if not incoming.keep:
            self.close()
        return incoming

    def close(self) -> None:
        """Hang up at once."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        incoming, over = self._incoming, self._over
        if incoming is None or over is None or over.done():
            return self.close()  # nobody asked
        try:
            incoming.push(data)
        except (Malformed, Left) as fault:
            over.set_exception(fault)
            return
        if incoming.done:
            over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        incoming, over = self._incoming, self._over
        if incoming is None or over is None or over.done():
            return
        if exc is not None:
            over.set_exception(exc)
            return
        try:
            incoming.close()
        except Malformed as fault:
            over.set_exception(ConnectionResetError(str(fault)))
            return
        over.set_result(None)


class Pool:
    """Connections to one server: those that are idle are used again, the latest first."""

    def __init__(self, target: Target):
        self.target = target
        self.opened = 0
        self._idle: list[Connection] = []
        self._ssl = target.ssl

    async def get(self) -> Connection:
        """A connection for one request. Raises OSError."""
        while self._idle:
            found = self._idle.pop()
            if found.idle:
                return found
        self.opened += 1
        _, made = await asyncio.get_running_loop().create_connection(
            Connection, self.target.host, self.target.port, ssl=self._ssl
        )
        return made

    def put(self, connection: Connection) -> None:
        """Give it back; a closed one is dropped."""
        if connection.idle:
            self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
