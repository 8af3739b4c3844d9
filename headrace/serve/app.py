"""All routes in one FastAPI app, and the layers every request passes."""

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace import __version__
from headrace.serve import errors, page, responses, schema, small
from headrace.serve.ask import SAFE_NAME
from headrace.serve.auth import Auth, Door, split
from headrace.serve.chat import CHAT
from headrace.serve.completions import COMPLETIONS
from headrace.serve.docs import router as docs
from headrace.serve.frontend import Frontend
from headrace.serve.limits import Limits
from headrace.serve.schema import answers, body_of
from headrace.serve.settings import Serve
from headrace.serve.shelf import Shelf

Told = Callable[[str, str, int, float], None]
"""Told of every request that was answered: the path as it was registered, method, status, seconds."""

ABOUT = "An OpenAI-compatible server of one language model. Unknown fields of a body are ignored."

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    responses=answers(schema.ChatReply, 400, 404, 408, 413, stream=True),
    openapi_extra=body_of("ChatRequest"),
    tags=["generation"],
)
async def chat(request: Request) -> Response:
    """The assistant's next message, whole or as server-sent events."""
    return await CHAT.answer(request)


@router.post(
    "/v1/completions",
    responses=answers(schema.CompletionReply, 400, 404, 408, 413, stream=True),
    openapi_extra=body_of("CompletionRequest"),
    tags=["generation"],
)
async def completions(request: Request) -> Response:
    """Texts that go on from the prompts, whole or as server-sent events."""
    return await COMPLETIONS.answer(request)


def make_app(
    front: Frontend,
    settings: Serve,
    *,
    door: Door | None = None,
    routers: Iterable[APIRouter] = (),
    told: Told | None = None,
    shared: Path | None = None,
) -> FastAPI:
    """The app. `routers` are further routes; `told` hears of every request; `shared` is a folder of all processes
    that serve this model, where there are several. Raises Refused for settings that would let anybody in."""
    door = door or Door(settings, page.OPEN if settings.page else ())
    layers = [Middleware(Named, told=told)]
    if origins := split(settings.cors):
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST", "OPTIONS"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    layers += [Middleware(Auth, door=door), Middleware(Limits, settings=settings)]
    app = FastAPI(
        title="Headrace",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=layers,
    )
    app.state.front, app.state.settings = front, settings
    shelf = Shelf(settings.keep_responses, shared and shared / "responses")
    app.state.desk = responses.Desk(shelf)
    errors.install(app)
    pages = [page.router] if settings.page else []
    for more in (router, responses.router, small.router, docs, *routers, *pages):
        app.include_router(more)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
            app.openapi_schema = schema.complete(made, bool(door.api))
        return app.openapi_schema

    app.openapi = document
    return app


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
