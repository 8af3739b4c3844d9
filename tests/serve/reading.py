"""What goes over the wire, in tests: requests written by hand, answers read."""

import json
import socket
from typing import Any

import httpx

Json = dict[str, Any]

PATIENT = httpx._config.DEFAULT_TIMEOUT_CONFIG
PATIENT.connect = PATIENT.read = PATIENT.write = PATIENT.pool = 120.0
"""Seconds for whoever names none: httpx's own five are too few on a busy machine."""


def posted(body: bytes, *more: str, path: str = "/v1/completions", length: int | None = None) -> bytes:
    """A POST of JSON as bytes, with further headers; `length` is what it says of its body, however long that is."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + body


def everything(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def frames(response: httpx.Response) -> list[Json]:
    """The JSON of every frame; checks that the stream is well formed and ends with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    assert parts.pop() == "data: [DONE]"
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def text(found: list[Json], index: int = 0) -> str:
    """All text of one choice."""
    choices = [choice for frame in found for choice in frame["choices"] if choice["index"] == index]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)


def error(response: httpx.Response, status: int) -> Json:
    """The error object of a refusal, checked for its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    said = body["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert said["message"]
    assert said["type"]
    assert status == said["code"] or status == 401
    return said
