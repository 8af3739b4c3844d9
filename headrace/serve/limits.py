"""Bounds on what a request may bring, checked before anything is done for it: bytes, time, depth, counts."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.base.errors import Late, Refused, TooLarge
from headrace.serve import errors
from headrace.serve.settings import Serve
from headrace.serve.waits import Waits

DEEPEST = 128
"""Levels of a body's lists and objects; real JSON schemas stay far below."""

MOST: dict[str, int] = {
    "messages": 4096, "input": 4096, "include": 64, "tools": 512, "documents": 256, "stop": 64, "bad_words": 128,
    "stop_token_ids": 1024, "logit_bias": 1024, "metadata": 64,
}  # fmt: skip
"""Entries of a field's list or object."""

LONGEST: dict[str, int] = {"stop": 512, "bad_words": 512, "cache_salt": 512, "model": 512, "request_id": 256}
"""Characters of a field, or of each entry of its list."""

LARGE = 1 << 18
"""Bytes from which on a body is decoded on another thread: about what takes a millisecond."""

INT64 = range(-(2**63), 2**63)

# A string of a JSON text, and the colon behind it if it is a key.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"([ \t\r\n]*:)?', re.DOTALL)

Json = dict[str, Any]


class Limits:
    """ASGI: a body that is too large or too slow ends its request; one that is announced is not even read.

    Heads are bounded while they are read, by the protocols in server.py; what they let through is measured here.
    """

    def __init__(self, app: ASGIApp, settings: Serve, waits: Waits):
        self.app, self.seconds, self.waits = app, settings.body_seconds, waits
        self.most, self.most_head = settings.max_body, settings.max_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if (fault := self._refusal(scope)) is not None:
            response = errors.answer(fault)
            response.headers["Connection"] = "close"  # what follows may be anything
            return await response(scope, receive, send)
        read, left = 0, True
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Message:
            nonlocal read, left
            if not left:
                return await receive()  # waits for the client to go away
            try:
                async with self.waits.until(deadline):
                    message = await receive()
            except TimeoutError:
                raise Late(
                    f"the body did not come in within {self.seconds:g} s", hint="send it at once"
                ) from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                left = message.get("more_body", False)
                if read > self.most:
                    raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        """What is wrong with the head of a request."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        path = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if path + sum([len(name) + len(value) + 4 for name, value in headers]) > self.most_head:
            return TooLarge(f"the headers are larger than {self.most_head} bytes")
        found = {name: value for name, value in headers if name in (b"content-length", b"transfer-encoding")}
        if len(found) > 1:  # two servers in a row could see two different requests in it
            return Refused("both Content-Length and Transfer-Encoding are given; expected one of them")
        length = found.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.most:
            return self._too_large()
        return None

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.most} bytes", hint="send less, or raise --max-body")


async def read_json(request: Request) -> Json:
    """The object in a request's body. Raises Refused for what is none, or for another content type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != errors.JSON and not kind.endswith("+json"):
        raise Refused(
            f"the content type is {kind[:100] or 'missing'}; expected application/json",
            hint="send the header Content-Type: application/json",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("the body is packed; expected plain JSON", hint="leave Content-Encoding out")
    raw = await request.body()
    return decoded(raw) if len(raw) < LARGE else await asyncio.to_thread(decoded, raw)


def decoded(raw: bytes) -> Json:
    """The object that a JSON text says. Raises Refused for anything that is not exactly one, or is too deep."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Refused(f"the body is no valid JSON: {fault}") from fault
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(found, dict):
        raise Refused("the body is no JSON object; expected one", hint='send {"...": ...}')
    keys = _count_keys(found) if raw.count(b"{") + raw.count(b"[") > 1 else len(found)
    if keys != sum(match[1] is not None for match in _STRING.finditer(raw)):
        raise Refused(
            "the body has an object with the same key twice", hint="which one is meant cannot be known"
        )
    for name, value in found.items():
        if type(value) is int and value not in INT64:
            raise Refused(f"{name} is a number of more than 64 bits", param=name)
    return found


def _count_keys(found: Json) -> int:
    """Keys of all objects inside and including `found`. Raises Refused below DEEPEST levels."""
    count, level = 0, [found]
    for _ in range(DEEPEST):
        count += sum(len(item) for item in level if type(item) is dict)
        level = [inner for item in level for inner in _inner(item)]
        if not level:
            return count
    raise _too_deep()


def _inner(item: Any) -> Iterator[Any]:
    """Lists and objects directly inside one."""
    values = item.values() if type(item) is dict else item
    if dict in (kinds := set(map(type, values))) or list in kinds:  # long lists of numbers have none
        for value in values:
            if type(value) is dict or type(value) is list:
                yield value


def _too_deep() -> Refused:
    return Refused(f"the body has lists and objects more than {DEEPEST} deep")


def check(body: Mapping[str, Any], settings: Serve) -> int:
    """Counts and lengths, before anything is made of them; how many answers are wanted. Raises Refused.

    What a field's values may be is none of this file's business: SamplingParams and the dialect say that.
    """
    for name, most in MOST.items():
        value = body.get(name)
        if isinstance(value, list | dict) and len(value) > most:
            raise Refused(f"{name} has {len(value)} entries; expected at most {most}", param=name)
    for name, longest in LONGEST.items():
        value = body.get(name)
        if isinstance(value, str | list) and any(
            isinstance(text, str) and len(text) > longest
            for text in ([value] if isinstance(value, str) else value)
        ):
            raise Refused(f"{name} has more than {longest} characters", param=name)
    count = _prompts(body.get("prompt"))
    if count > settings.max_prompts:
        raise Refused(f"there are {count} prompts; expected at most {settings.max_prompts}", param="prompt")
    given = body.get("n")
    n = given if type(given) is int else 1
    if n * count > settings.max_answers:
        raise Refused(
            f"{n} answers to {count} prompts are wanted; expected at most {settings.max_answers} answers",
            param="n",
        )
    return max(1, n * count)


def _prompts(given: Any) -> int:
    if not isinstance(given, list) or not given or isinstance(given[0], int):
        return 1
    return len(given)
