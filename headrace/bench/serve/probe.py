"""What is asked of a server before it is loaded: its models, what its words weigh, its version."""

import http.client
import socket
from typing import Any

import msgspec

from headrace.base.errors import Denied, Refused, UnknownName, Unreachable
from headrace.bench.serve.connection import Target
from headrace.bench.serve.data import WORDS
from headrace.bench.serve.dialect import said_by

SECONDS = 10.0
"""How long a server may take to say what it is."""

FEWEST = 40
"""Words of one token each that make prompts random enough."""


def fetch(target: Target, path: str, body: Any = None, seconds: float = SECONDS) -> tuple[int, bytes]:
    """Status and body of one request. Raises Unreachable."""
    kind = http.client.HTTPConnection
    more: dict[str, Any] = {"timeout": seconds}
    if target.secure:
        kind, more["context"] = http.client.HTTPSConnection, target.ssl
    connection = kind(target.host, target.port, **more)
    headers = {"Content-Type": "application/json", **target.headers}
    try:
        raw = None if body is None else msgspec.json.encode(body)
        connection.request("GET" if body is None else "POST", target.path + path, raw, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException, socket.gaierror) as fault:
        raise Unreachable(
            f"{target.url}{path} cannot be reached: {fault or type(fault).__name__}",
            hint="is the server running, and is --url its address?",
        ) from fault
    finally:
        connection.close()


def find_model(target: Target, wanted: str | None) -> tuple[str, int | None]:
    """The model to ask for and its longest context, where the server says it.

    Raises Unreachable, Denied, UnknownName for a model it does not have, Refused where one must be chosen.
    """
    status, raw = fetch(target, "/v1/models")
    if status in (401, 403):
        raise Denied(f"{target.url} asks for a key: {said_by(raw)}", hint="give it with --api-key")
    try:
        found: Any = msgspec.json.decode(raw)
        models = {str(model["id"]): model.get("max_model_len") for model in found["data"]}
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as fault:
        if wanted is not None:
            return wanted, None  # there are servers without a list
        raise Refused(
            f"{target.url}/v1/models answers {status} and no list of models",
            param="url",
            hint="give --model, if this is an OpenAI-compatible server at all",
        ) from fault
    if wanted is None:
        if len(models) != 1:
            raise Refused(
                f"{target.url} has {len(models)} models: {', '.join(models)}",
                param="model",
                hint="choose one with --model",
            )
        wanted = next(iter(models))
    if models and wanted not in models:
        raise UnknownName.among("model", wanted, list(models), param="model")
    length = models.get(wanted)
    return wanted, length if isinstance(length, int) else None


def weigh_words(target: Target, model: str) -> tuple[list[str], float]:
    """Words for prompts, and how many tokens one of them is: 1 wherever the server lets us find out.

    Words that are several tokens are left out by halving; where few remain, or nothing can be found out, all are
    taken with their average.
    """
    whole = _count(target, model, WORDS)
    if whole is None:
        return WORDS, 1.0
    good: list[str] = []
    groups = [(WORDS, whole)]
    while groups and len(groups) <= len(WORDS) // 4:  # beyond that, most are not whole tokens here
        group, tokens = groups.pop()
        if tokens == len(group):
            good += group
        elif len(group) > 1:
            half = len(group) // 2
            groups += [(part, _count(target, model, part) or 0) for part in (group[:half], group[half:])]
    if len(good) >= FEWEST:
        return sorted(good), 1.0
    return WORDS, whole / len(WORDS)


def _count(target: Target, model: str, words: list[str]) -> int | None:
    """How many tokens words are in the middle of a text; None where the server does not say."""
    text = " " + " ".join(words)
    status, raw = fetch(target, "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
    try:
        return int(msgspec.json.decode(raw, type=dict[str, Any])["count"]) if status == 200 else None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None


def version(target: Target) -> str | None:
    """What the server says it is."""
    try:
        status, raw = fetch(target, "/version", seconds=2.0)
        found: Any = msgspec.json.decode(raw) if status == 200 else None
    except (Unreachable, msgspec.DecodeError):
        return None
    return str(found.get("version")) if isinstance(found, dict) else None
