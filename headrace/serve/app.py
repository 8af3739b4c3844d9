"""All routes in one FastAPI app, and in which order its layers are passed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from headrace import __version__
from headrace.serve import errors, page, responses, schema, small
from headrace.serve.auth import Auth, Door
from headrace.serve.chat import CHAT
from headrace.serve.completions import COMPLETIONS
from headrace.serve.docs import router as docs
from headrace.serve.frontend import Frontend
from headrace.serve.layers import Named, Straight, Told
from headrace.serve.limits import Limits
from headrace.serve.schema import route
from headrace.serve.settings import Serve, split
from headrace.serve.shelf import Shelf

ABOUT = "An OpenAI-compatible server of one language model. Unknown fields of a body are ignored."

router = APIRouter()


@router.post("/v1/chat/completions", **route("generation", schema.ChatReply, body="ChatRequest", stream=True))
async def chat(request: Request) -> Response:
    """The assistant's next message, whole or as server-sent events."""
    return await CHAT.answer(request)


@router.post(
    "/v1/completions", **route("generation", schema.CompletionReply, body="CompletionRequest", stream=True)
)
async def completions(request: Request) -> Response:
    """Texts that go on from the prompts, whole or as server-sent events."""
    return await COMPLETIONS.answer(request)


def make_app(
    front: Frontend,
    settings: Serve,
    *,
    routers: Iterable[APIRouter] = (),
    told: Told | None = None,
    shared: Path | None = None,
) -> FastAPI:
    """The app. `routers` are further routes; `told` hears of every request; `shared` is a folder of all processes
    that serve this model, where there are several. Raises Refused for settings that would let anybody in."""
    door = Door(settings, page.OPEN if settings.page else ())
    app = FastAPI(
        title="Headrace",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=layers(front, settings, door, told),
    )
    app.state.front, app.state.settings, app.state.door = front, settings, door
    shelf = Shelf(settings.keep_responses, shared and shared / "responses")
    app.state.desk = responses.Desk(shelf, front.front)
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


def layers(front: Frontend, settings: Serve, door: Door, told: Told | None) -> list[Middleware]:
    """What a request passes before it comes to a route, from the outside in."""
    around = [Middleware(Named, told=told)]
    if origins := split(settings.cors):
        around.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
                allow_headers=["*"],  # OpenAI's library sends a dozen of its own
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    straight = {one.path: one for one in router.routes if isinstance(one, APIRoute)}
    return [
        *around,
        Middleware(Auth, door=door),
        Middleware(Limits, settings=settings, waits=front.waits),
        Middleware(Straight, routes=straight),
    ]
