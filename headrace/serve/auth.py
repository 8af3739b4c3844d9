"""Who may ask: keys on every path but a few, hosts by name, and what a listener on a network needs."""

import hmac
import ipaddress
import os
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.base.errors import Denied, Fault, Forbidden, Refused
from headrace.base.home import expanded
from headrace.serve import errors
from headrace.serve.settings import Serve, split

OPEN = frozenset({"/health/live"})
"""Paths for everyone: that the process lives is no secret, and whoever restarts it has no key."""

ADMIN = "/debug"
"""A path for the admin key, with all that is below it."""
MOST_KEYS = 1 << 20
"""Characters of a file of keys."""

API_KEY, ADMIN_KEY = "HEADRACE_API_KEY", "HEADRACE_ADMIN_KEY"
"""Environment variables with keys; unlike a flag they are not in the list of processes."""

Headers = Iterable[tuple[bytes, bytes]]


class Keys:
    """Keys as digests, compared in a time that tells nothing about them."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def know(self, given: str) -> bool:
        digest, found = sha256(given.encode("utf-8", "surrogateescape")).digest(), False
        for known in self._digests:  # all of them, whichever it is
            found |= hmac.compare_digest(known, digest)
        return found


class Door:
    """What a path asks for, decided once from the settings.

    api     keys of clients; without any, nobody is asked     admin   keys for control and debugging
    """

    def __init__(
        self, settings: Serve, also_open: Collection[str] = (), environ: Mapping[str, str] = os.environ
    ):
        self.api = Keys(read_keys(settings.api_key, settings.api_key_file, environ.get(API_KEY)))
        self.admin = Keys(
            read_keys(settings.admin_key, settings.admin_key_file, environ.get(ADMIN_KEY), "admin")
        )
        given = {*OPEN, *also_open, *split(settings.open_paths)}
        self._open = frozenset(path for path in given if path == "/" or not path.endswith("/"))
        self._open_below = tuple(path for path in given if path != "/" and path.endswith("/"))
        if bad := [path for path in given if not path.startswith("/") or is_admin(path.rstrip("/"))]:
            raise Refused(
                f"{bad[0]!r} cannot be open to everyone; expected a path that begins with / and is not below {ADMIN}",
                param="serve.open_paths",
                hint="such as --open-paths /health,/metrics",
            )
        self.local = is_loopback(settings.host)
        # A name that leads here by somebody else's DNS would let their page use a server without keys.
        check = self.local and not self.api
        self.hosts = frozenset(split(settings.allowed_hosts)) if check or settings.allowed_hosts else None
        if not (self.local or self.api or settings.insecure):
            raise Refused(
                f"host {settings.host} can be reached from a network, and no key is asked for",
                param="serve.host",
                hint=f"set the variable {API_KEY}, give --api-key-file FILE, or --insecure to serve everyone",
            )

    def fault(self, path: str, headers: Headers) -> Fault | None:
        """Why a request may not come in; None where it may."""
        found = {name: value for name, value in headers if name in (b"authorization", b"host")}
        if not self._knows_host(found.get(b"host", b"").decode("latin-1")):
            return Forbidden(
                "this server is not known by the name in the Host header",
                param="host",
                hint="use its address, or start it with --allowed-hosts NAME",
            )
        if path in self._open or path.startswith(self._open_below):
            return None
        given = credential(found.get(b"authorization", b""))
        return self._admin(given) if is_admin(path) else self._client(given)

    def _client(self, given: str | None) -> Fault | None:
        if not self.api:
            return None
        if given is None:
            return Denied("no key was given", hint="send the header Authorization: Bearer KEY")
        # `|`, not `or`: both are looked at, whichever fits
        return None if self.api.know(given) | self.admin.know(given) else Denied("the key is not known here")

    def _admin(self, given: str | None) -> Fault | None:
        if not self.admin:
            if self.local and not self.api:
                return None
            return Forbidden(
                "control and debugging are closed, because no admin key is set",
                hint=f"start the server with {ADMIN_KEY} set",
            )
        if given is None:
            return Denied("no admin key was given", hint="send the header Authorization: Bearer KEY")
        if self.admin.know(given):
            return None
        if self.api.know(given):
            return Forbidden("this key is not for control and debugging", hint="send the admin key")
        return Denied("the key is not known here")

    def _knows_host(self, header: str) -> bool:
        if self.hosts is None:
            return True
        name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
        name = name.strip("[]").rstrip(".").lower()
        return name in self.hosts or name == "localhost" or name.endswith(".localhost") or _is_ip(name)


class Auth:
    """ASGI: lets through what the door lets through."""

    def __init__(self, app: ASGIApp, door: Door):
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # nothing else is spoken here
        if (fault := self.door.fault(scope["path"], scope["headers"])) is not None:
            response = errors.answer(fault)
            if isinstance(fault, Denied) and _is_browser(scope["headers"]):
                response.headers["WWW-Authenticate"] = 'Basic realm="headrace, any name, the key as password"'
            return await response(scope, receive, send)
        return await self.app(scope, receive, send)


def credential(header: bytes) -> str | None:
    """The key in an Authorization header: of Bearer, or the password of Basic, which browsers can ask for."""
    kind, _, given = header.decode("latin-1").strip().partition(" ")
    given = given.strip()
    if kind.lower() == "bearer":
        return given or None
    if kind.lower() == "basic":
        try:
            return b64decode(given, validate=True).decode().partition(":")[2] or None
        except (NotBase64, UnicodeDecodeError, ValueError):
            return None
    return None


def read_keys(given: str | None, file: str | None, variable: str | None, of: str = "api") -> list[str]:
    """Keys of a flag (separated by commas), a file (one a line, `#` for remarks) and an environment variable.

    `of` is the first part of the flags' names. Raises Refused.
    """
    keys = [*split(given), *split(variable)]
    param, hint = f"serve.{of}_key_file", f"give --{of}-key-file a file with one key a line"
    if file is not None:
        try:
            with expanded(file).open(encoding="utf-8") as source:  # also a pipe, as shells make of <(...)
                text = source.read(MOST_KEYS + 1)
        except (OSError, UnicodeDecodeError) as fault:
            why = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8"
            raise Refused(
                f"the file of keys {file!r} cannot be read: {why}", param=param, hint=hint
            ) from fault
        if len(text) > MOST_KEYS:
            raise Refused(
                f"the file of keys {file!r} has more than {MOST_KEYS:,} characters", param=param, hint=hint
            )
        lines = text.splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise Refused(f"the file of keys {file!r} has none", param=param, hint=hint)
        keys += found
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise Refused(
            "a key has characters that no header can carry; expected visible ASCII", param=f"serve.{of}_key"
        )
    return keys


def is_admin(path: str) -> bool:
    """Whether a path is for the admin key."""
    return path == ADMIN or path.startswith(f"{ADMIN}/")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(64)  # it is asked for every request, and few names are used
def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_browser(headers: Any) -> bool:
    """Whether somebody looks at a page, so that a question for the key is seen."""
    return any(name == b"accept" and b"text/html" in value for name, value in headers)
