"""Puts the watchers on a front process, and the routes through which they answer."""

from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.serve import debug_routes
from headrace.serve.auth import Door
from headrace.serve.debug import History, Live
from headrace.serve.frontend import Frontend
from headrace.serve.lines import Lines
from headrace.serve.metrics import CONTENT_TYPE, Metrics
from headrace.serve.settings import Serve
from headrace.serve.trace import Tracer

PATH = "/metrics"
HEADERS = [(b"content-type", CONTENT_TYPE.encode())]


class Observers(NamedTuple):
    """The watchers of a front process; `tracer` None where no traces are wanted."""

    metrics: Metrics
    history: History
    live: Live
    tracer: Tracer | None

    def close(self) -> None:
        """Send what has not been sent."""
        if self.tracer is not None:
            self.tracer.close()


def observe(front: Frontend, settings: Serve, model: str, folder: Path | None = None) -> Observers:
    """Have a front process watched. Raises Refused where traces are wanted without the extra `otel`.

    model    the name clients know the model by
    folder   where the processes of a server that has several keep their numbers
    """
    metrics = Metrics(model, folder=folder, index=front.front)
    history, live = History(metrics), Live(metrics, front)
    tracer = Tracer(model, settings.traces) if settings.traces else None
    lines = None if settings.request_log == "off" else Lines(settings.request_log)
    front.count = metrics.updated
    front.watchers += [one for one in (history, live, lines, tracer, metrics) if one is not None]
    return Observers(metrics, history, live, tracer)


class Scrape:
    """ASGI around the app: /metrics is answered at once.

    Routers of inference gateways ask every server 20 times a second; the layers and routes of the app would cost
    three times what the answer does. The door is the same. As with vLLM, what is asked here is no request that
    `http_requests_total` counts.
    """

    def __init__(self, app: ASGIApp, front: Frontend, observers: Observers, door: Door):
        self.app, self.front, self.metrics, self.door = app, front, observers.metrics, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
            return await self.app(scope, receive, send)
        if self.door.fault(PATH, scope["headers"]) is not None:
            return await self.app(scope, receive, send)  # which says so
        body = self.metrics.render(self.front.ready)
        headers = [*HEADERS, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def make_router(front: Frontend, observers: Observers) -> APIRouter:
    """/metrics and what is under /debug. Who may ask is decided in auth.py."""
    router = APIRouter()

    @router.get(PATH, summary="Numbers for Prometheus")
    @router.head(PATH, include_in_schema=False)
    async def metrics() -> Response:
        return Response(observers.metrics.render(front.ready), media_type=CONTENT_TYPE)

    router.include_router(debug_routes.make_router(observers.live, observers.history))
    return router
