"""Layers around the app in plain ASGI: the id of a request, and a short way to the routes that matter most."""

import secrets
from collections.abc import Callable, Mapping
from time import monotonic

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.base.errors import Fault
from headrace.serve import errors
from headrace.serve.ask import SAFE_NAME

Told = Callable[[str, str, int, float], None]
"""Told of every request that was answered: the path as it was registered, method, status, seconds."""


class Named:
    """ASGI: gives every request an id, the client's own where it has a usable one, and sends it back."""

    def __init__(self, app: ASGIApp, told: Told | None = None):
        self.app, self.told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if SAFE_NAME.fullmatch(given) else None
        id = name or secrets.token_hex(12)
        scope.setdefault("state", {}).update(name=name, id=id)
        header, status, began = (b"x-request-id", id.encode()), 0, monotonic()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                nonlocal status
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self.app(scope, receive, named)
        finally:
            if self.told is not None and status:
                route = scope.get("route")
                path = route.path if isinstance(route, Route) else ""
                self.told(path, scope["method"], status, monotonic() - began)


class Straight:
    """ASGI: leads straight to routes whose endpoints take a request and give a response, past FastAPI.

    They are registered there as well, for the document. Each of its dozen coroutines is passed again for every
    token: without them a streamed token costs 21 us instead of 28, a short request 0.66 ms instead of 0.84.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, APIRoute]):
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] not in route.methods:
            return await self.app(scope, receive, send)
        scope["route"] = route
        try:
            response = await route.endpoint(Request(scope, receive))
        except ClientDisconnect:
            return None
        except Fault as fault:
            response = errors.answer(fault)
        await response(scope, receive, send)
