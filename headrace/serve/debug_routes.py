"""The routes under /debug. What one front process does not know, it asks the others."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from headrace.base.errors import UnknownName
from headrace.engine.reply import Json
from headrace.serve.debug import KEPT, SHOWN, History, Live
from headrace.serve.sse import encode


def reply(live: Live, history: History, question: list[Any]) -> Any:
    """What this front knows, for another one that is asked: rows, requests, a timeline; or it cancels a request."""
    match question:
        case ["rows"]:
            snapshot = live.snapshot()
            return [snapshot["rows"], snapshot["more"]]
        case ["requests", int(limit)]:
            return history.latest(limit)
        case ["find", str(id)]:
            return history.find(id)
        case ["cancel", str(id)] if (answer := live.front.answers.get(id)) is not None:
            answer.cancel()
            return True
        case _:
            return None


class Desk:
    """Asks this front, and the others where there are some."""

    def __init__(self, live: Live, history: History):
        self.live, self.history, self.peers = live, history, live.front.peers
        self.peers.reply = lambda question: reply(live, history, question)

    async def snapshot(self) -> Json:
        """The numbers are those of all fronts; the rows are asked for."""
        body = self.live.snapshot()
        for rows, more in await self.peers.ask(["rows"]):
            body["rows"] += rows
            body["more"] += more
        body["rows"].sort(key=lambda row: -row["age"])
        body["more"] += len(body["rows"][SHOWN:])
        del body["rows"][SHOWN:]
        return body

    async def requests(self, limit: int) -> Json:
        """What runs, the oldest first, and what ended or was refused, the latest first."""
        body = self.history.latest(limit)
        for found in await self.peers.ask(["requests", limit]):
            for name in body:
                body[name] += found[name]
        body["running"].sort(key=lambda row: -row["age"])
        for name in ("ended", "refused"):
            body[name].sort(key=lambda entry: -entry["time"])
            del body[name][limit:]
        return body

    async def first(self, *question: str) -> Any:
        """What the first front says that knows anything. Raises UnknownName."""
        found = [reply(self.live, self.history, [*question])]
        if found[0] is None:
            found = await self.peers.ask([*question])
        if not found:
            raise UnknownName(
                f"no request {question[-1][:80]!r} is running or was lately",
                param="id",
                hint=f"the last {self.history.kept} are kept",
            )
        return found[0]

    async def frames(self, every: float) -> AsyncIterator[bytes]:
        """The live view as server-sent events."""
        while not self.live.front.draining:
            yield b"data: %b\n\n" % encode(await self.snapshot())
            await asyncio.sleep(every)


def make_router(live: Live, history: History) -> APIRouter:
    """The routes under /debug. Who may use them is decided in auth.py."""
    router, desk = APIRouter(prefix="/debug", include_in_schema=False), Desk(live, history)

    @router.get("/live")
    async def feed(request: Request, every: float = 1.0) -> Response:
        if "text/event-stream" not in request.headers.get("accept", ""):
            return _json(await desk.snapshot())
        frames = desk.frames(min(max(every, 0.2), 60.0))
        return StreamingResponse(
            frames, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    @router.get("/state")
    async def state() -> Response:
        return _json(live.state())

    @router.get("/requests")
    async def requests(limit: int = 100) -> Response:
        return _json(await desk.requests(min(max(limit, 1), KEPT)))

    @router.get("/requests/{id:path}")
    async def one(id: str) -> Response:
        return _json(await desk.first("find", id))

    @router.post("/requests/{id:path}/cancel")
    async def cancel(id: str) -> Response:
        await desk.first("cancel", id)
        return _json({"id": id, "cancelled": True})

    return router


def _json(body: Json) -> Response:
    return Response(encode(body), media_type="application/json", headers={"Cache-Control": "no-store"})
