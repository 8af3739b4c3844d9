"""From a body to an answer on its way: what chat and completions do alike."""

import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, time
from typing import Any, NamedTuple

from fastapi import Request
from starlette.responses import Response

from headrace.base.errors import Fault, UnknownName
from headrace.engine.dialect import Ask, Body, takes_long
from headrace.engine.intake import Intake
from headrace.engine.reply import Json, reply
from headrace.engine.request import Request as Prompted
from headrace.engine.request import SamplingParams
from headrace.serve import limits
from headrace.serve.answer import Answer
from headrace.serve.errors import JSON
from headrace.serve.frontend import LONG_TEXT, Frontend
from headrace.serve.settings import Serve
from headrace.serve.sse import EventStream, Frames, Whole, encode

log = logging.getLogger(__name__)

SAFE_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)
"""What a client may call its request: it goes into headers, logs and traces."""

LONGEST = 7 * 24 * 3600 * 1000
"""Milliseconds; event loops cannot count much further."""

PREFIX = {"chat": "chatcmpl", "completion": "cmpl"}

Read = Callable[[Body, Intake, SamplingParams], Ask]


class Asked(NamedTuple):
    """What was asked for, read and checked; not with the engine yet.

    requests    one per prompt and answer, prompt-major
    name        what the client calls it, if anything      model   the name it used for the model
    """

    ask: Ask
    requests: list[Prompted]
    id: str
    name: str | None
    model: str
    created: int


class Offer:
    """A kind of generation on offer: how its bodies are read and its streams are written."""

    def __init__(self, kind: str, read: Read, frames: "Callable[[Asked, Answer, Intake], Frames]"):
        self.kind, self.read, self.frames = kind, read, frames
        self._warned: set[str] = set()

    async def answer(self, request: Request) -> Response:
        """Read the body, hand it to the engine; the response sends what comes."""
        front, settings = of(request)
        with refusals(request, self.kind):
            asked = await self.asked(request, admit=True)
            answer, intake = submit(request, asked, self.kind), front.intake
        if asked.ask.stream:
            return EventStream(answer, self.frames(asked, answer, intake), settings)
        return Whole(answer, lambda: whole(asked, answer, intake))

    async def asked(self, request: Request, admit: bool = False) -> Asked:
        """What a request asks for. Raises what `read_body` does, and Refused for what is wrong in it."""
        front, settings = of(request)
        body, model = await read_body(request, admit)
        intake = front.intake
        size = LONG_TEXT if takes_long(body) else length(request, settings)
        ask: Ask = await front.off_loop(size, lambda: self.read(body, intake, front.facts.defaults))
        self._warn(ask.unknown)
        name = named(request, ask)
        id = f"{PREFIX[self.kind]}-{name or request.scope['state']['id']}"
        if id in front.answers:  # a client may use its own name for several
            id += f"-{secrets.token_hex(4)}"
        return Asked(ask, requests_of(ask, intake), id, name, model, int(time()))

    def _warn(self, names: tuple[str, ...]) -> None:
        """Once for each field that nobody knows, and not for ever more of them."""
        for name in names:
            if name not in self._warned and len(self._warned) < 100:
                self._warned.add(name)
                log.warning("requests have a field that is unknown here and ignored: %.60r", name)


@contextmanager
def refusals(request: Request, kind: str) -> Iterator[None]:
    """Tell the watchers of a Fault that keeps a request from being taken, with the id that its answer's head has."""
    try:
        yield
    except Fault as fault:
        front, _ = of(request)
        for watcher in front.watchers:
            watcher.refused(kind, fault, request.scope["state"]["id"])
        raise


async def read_body(request: Request, admit: bool = False) -> tuple[Json, str]:
    """The body, within the limits, and the name it has for the model. Raises a Fault for what cannot be read or had.

    `admit`: it must have a place first, because it shall be answered.
    """
    front, settings = of(request)
    names = front.facts.served
    body = await limits.read_json(request)
    wanted = limits.check(body, settings)
    if admit:
        front.admit(wanted)
    return body, served(body.get("model"), names)


def submit(request: Request, asked: Asked, kind: str) -> Answer:
    """Hand what is asked for to the engine. Raises what Frontend.submit does."""
    front, _ = of(request)
    timeout = asked.ask.timeout_ms
    return front.submit(
        asked.requests,
        id=asked.id,
        timeout_ms=None if timeout is None else min(timeout, LONGEST),
        kind=kind,
        trace=request.headers.get("traceparent"),
        name=asked.name,
    )


def named(request: Request, ask: Ask) -> str | None:
    """What the client calls its request: in the body, else in the head."""
    if ask.request_id and SAFE_NAME.fullmatch(ask.request_id):
        return ask.request_id
    return request.scope["state"]["name"]


def requests_of(ask: Ask, intake: Intake) -> list[Prompted]:
    """One per prompt and answer. Raises Refused or TooLong."""
    return [
        request
        for n, prompt in enumerate(ask.prompts)
        for request in intake.requests(
            str(n), {"prompt_token_ids": prompt}, ask.params, salt=ask.salt, priority=ask.priority
        )
    ]


def of(request: Request) -> tuple[Frontend, Serve]:
    """The front and the settings of the app that a request came to."""
    state = request.app.state
    return state.front, state.settings


def as_json(body: Any) -> Response:
    """A whole answer that is not about a generation."""
    return Response(encode(body), media_type=JSON)


def length(request: Request, settings: Serve) -> int:
    """Bytes of a request's body; the most there can be where nobody says."""
    return int(request.headers.get("content-length", settings.max_body))


def served(name: Any, names: tuple[str, ...]) -> str:
    """The name the reply gives to the model: the one that was asked for. Raises UnknownName."""
    if name is None or name == "":
        return names[0]
    if not isinstance(name, str) or name not in names:
        raise UnknownName.among("model", str(name)[:200], list(names), param="model")
    return name


def whole(asked: Asked, answer: Answer, intake: Intake) -> Json:
    """The reply in one piece."""
    body = reply(asked.ask, asked.id, asked.created, asked.model, answer.streams, intake.tokenizer)
    if asked.ask.timings:
        body["timings"] = timings(answer)
    return body


def timings(answer: Answer) -> Json:
    """How long the parts of an answer took, in milliseconds, with the names llama.cpp has for some of them."""
    ended = answer.ended or monotonic()
    scheduled, first = answer.scheduled or ended, answer.first or ended
    last = answer.last or first
    computed, generated = answer.prompt_tokens - answer.cached, answer.generated
    prompt_ms, predicted_ms = 1e3 * (first - scheduled), 1e3 * (last - first)
    return {
        "queue_ms": 1e3 * (scheduled - answer.arrived),
        "ttft_ms": 1e3 * (first - answer.arrived),
        "total_ms": 1e3 * (last - answer.arrived),
        "cache_n": answer.cached,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_second": 1e3 * computed / prompt_ms if prompt_ms > 0 else None,
        "predicted_n": generated,
        "predicted_ms": predicted_ms,
        # the first token belongs to the prompt's time
        "predicted_per_second": 1e3 * (generated - 1) / predicted_ms if predicted_ms > 0 else None,
        "preemptions": answer.evictions,
        "resumes": answer.resumes,
    }
