"""/v1/responses: made, followed, fetched, cancelled and forgotten."""

import asyncio
from time import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from headrace.base.errors import Broken, Refused, UnknownName
from headrace.engine.dialect import Ask, read_chat, takes_long
from headrace.engine.request import Request as Prompted
from headrace.serve import schema
from headrace.serve.answer import Answer
from headrace.serve.ask import Asked, as_json, length, named, of, read_body, refusals, requests_of, submit
from headrace.serve.frontend import LONG_TEXT
from headrace.serve.items import Chat, renamed, to_chat
from headrace.serve.output import new_id
from headrace.serve.responding import Responding, described
from headrace.serve.schema import route
from headrace.serve.shelf import Kept, Shelf
from headrace.serve.sse import EventStream, Whole, failed, fault_of

Json = dict[str, Any]

KIND = "response"
POLL_SECONDS = 0.5
"""How often a response in the background looks whether another process was told to cancel it."""

DIED = Broken("the process that made the response died")

router = APIRouter()


class Desk:
    """The responses of front process `number`: those on their way, and the shelf with those that are kept."""

    def __init__(self, shelf: Shelf, number: int = 0):
        self.shelf, self.number = shelf, number
        self.open: dict[str, Responding] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for id in shelf.left_by(number):
            if (kept := shelf.get(id)) is not None:
                kept.response |= {"status": "failed", "error": described(DIED)}
                shelf.put(id, kept)

    def keep(self, one: Responding) -> None:
        """One has ended; keep it if it was asked for."""
        self.open.pop(one.id, None)
        if one.body.get("store") is not False and not one.forgotten:
            self.shelf.put(one.id, one.kept())

    def found(self, id: str) -> Kept:
        """What is known of a response. Raises UnknownName."""
        if (one := self.open.get(id)) is not None:
            return one.kept()
        if (kept := self.shelf.get(id)) is None:
            raise unknown(id, "response_id")
        return kept

    def begin(self, one: Responding) -> None:
        """Have one made in the background."""
        kept = self.shelf.put(one.id, one.kept(), self.number)
        task = asyncio.get_running_loop().create_task(self._make(one, kept and self.shelf.shared))
        self._tasks[one.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(one.id, None))

    async def cancel(self, id: str) -> Json:
        """End one that is on its way, here or in another process; the response then. Raises UnknownName."""
        if (one := self.open.get(id)) is not None:
            assert one.answer is not None
            one.answer.cancel()
            if (task := self._tasks.get(id)) is not None:
                await asyncio.wait([task])
            return one.response() | {"status": "cancelled"} if one.status == "in_progress" else one.response()
        kept = self.found(id)
        if kept.response["status"] in ("queued", "in_progress"):
            kept.cancelled = True
            kept.response["status"] = "cancelled"
            self.shelf.put(id, kept)
        return kept.response

    async def _make(self, one: Responding, shared: bool) -> None:
        """`shared`: other processes may have it cancelled or forgotten."""
        answer = one.answer
        assert answer is not None
        watch = asyncio.create_task(self._watch(one.id, answer)) if shared else None
        try:
            await answer.end()
            if shared and self.shelf.get(one.id) is None:
                one.forgotten = True
            if failed(answer):
                one.fail(fault_of(answer))
            else:
                one.whole()
        finally:
            answer.cancel()
            self.open.pop(one.id, None)
            if watch is not None:
                watch.cancel()

    async def _watch(self, id: str, answer: Answer) -> None:
        """Cancel an answer when another process was told to, or was told to forget it."""
        while (kept := self.shelf.get(id)) is not None and not kept.cancelled:
            await asyncio.sleep(POLL_SECONDS)
        answer.cancel()


def unknown(id: str, param: str) -> UnknownName:
    """There is no such response."""
    return UnknownName(
        f"there is no response {id[:100]!r}",
        param=param,
        hint="it was not stored, or was forgotten to make room",
    )


def desk_of(request: Request) -> Desk:
    """The desk of the app that a request came to."""
    return request.app.state.desk


@router.post("/v1/responses", **route("responses", schema.ResponseReply, body="ResponseRequest", stream=True))
async def create(request: Request) -> Response:
    """The model's response to some input, whole, as named server-sent events, or made in the background."""
    _, settings = of(request)
    desk = desk_of(request)
    with refusals(request, KIND):
        one = await _read(request, desk)
        answer = one.answer = submit(request, one.asked, KIND)
    desk.open[one.id] = one
    if one.body.get("background") is True:
        desk.begin(one)
        return as_json(one.response())
    answered = EventStream(answer, one, settings) if one.asked.ask.stream else Whole(answer, one.whole)
    return _Followed(answered, desk, one.id)


class _Followed(Response):
    """A response on its way to somebody who waits for it; when that is over, it is not on its way any more."""

    def __init__(self, inner: Response, desk: Desk, id: str):
        super().__init__()
        self.inner, self.desk, self.id = inner, desk, id

    async def __call__(self, *args: Any) -> None:
        try:
            await self.inner(*args)
        finally:
            self.desk.open.pop(self.id, None)


async def _read(request: Request, desk: Desk) -> Responding:
    """What is asked for. Raises a Fault naming the field."""
    front, settings = of(request)
    body, model = await read_body(request, admit=True)
    intake = front.intake
    if body.get("background") is True and (body.get("stream") is True or body.get("store") is False):
        raise Refused(
            "background goes neither with stream nor without store: its response is to be fetched",
            param="background",
        )
    before = _before(body, desk)

    def read() -> tuple[Chat, Ask, list[Prompted]]:
        chat = to_chat(body, before)
        try:
            ask = read_chat(chat.body, intake, front.facts.defaults)
            return chat, ask, requests_of(ask, intake)
        except Refused as fault:
            raise renamed(fault) from None

    long = before or body.get("text") or takes_long(body)
    size = LONG_TEXT if long else length(request, settings)
    chat, ask, requests = await front.off_loop(size, read)
    asked = Asked(ask, requests, new_id("resp"), named(request, ask), model, int(time()))
    return Responding(body, chat, asked, intake, desk.keep)


def _before(body: Json, desk: Desk) -> list[Json]:
    """The conversation that the body goes on with."""
    id = body.get("previous_response_id")
    if id is None:
        return []
    if not isinstance(id, str):
        raise Refused("previous_response_id is no text; expected an id", param="previous_response_id")
    if (kept := desk.shelf.get(id)) is None:
        raise unknown(id, "previous_response_id")
    if kept.response["status"] in ("queued", "in_progress"):
        raise Refused(f"the response {id!r} has not ended yet", param="previous_response_id")
    return kept.messages


@router.get("/v1/responses/{response_id}", **route("responses", schema.ResponseReply, 404))
async def fetch(request: Request, response_id: str) -> Response:
    """A response that was made, or is being made."""
    return as_json(desk_of(request).found(response_id).response)


@router.get("/v1/responses/{response_id}/input_items", **route("responses", schema.Items, 404))
async def items(request: Request, response_id: str) -> Response:
    """The input that a response came with."""
    found = [{"id": new_id("msg")} | item for item in desk_of(request).found(response_id).items]
    first, last = (found[0]["id"], found[-1]["id"]) if found else (None, None)
    return as_json({"object": "list", "data": found, "has_more": False, "first_id": first, "last_id": last})


@router.delete("/v1/responses/{response_id}", **route("responses", schema.Deleted, 404))
async def delete(request: Request, response_id: str) -> Response:
    """Forget a response; one that is being made is cancelled first."""
    desk = desk_of(request)
    if (one := desk.open.get(response_id)) is not None:
        one.forgotten = True
        desk.shelf.drop(response_id)
        await desk.cancel(response_id)
    elif not desk.shelf.drop(response_id):
        raise unknown(response_id, "response_id")
    return as_json({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel", **route("responses", schema.ResponseReply, 404))
async def cancel(request: Request, response_id: str) -> Response:
    """End a response that is being made; one that has ended stays as it is."""
    return as_json(await desk_of(request).cancel(response_id))
