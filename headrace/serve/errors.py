"""Faults as HTTP answers: always the OpenAI error object, with the right status and headers."""

import logging
import math
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from headrace.base.errors import Broken, Busy, Denied, Fault, Refused, Unreachable
from headrace.engine.reply import ERROR_TYPES, error

log = logging.getLogger(__name__)

Json = dict[str, Any]
JSON = "application/json"
RETRY_SECONDS = 1
"""When to come back where nobody has measured anything better."""

PHRASES = {404: "there is no such path here", 405: "this path does not take this method"}


def described(fault: Fault) -> Json:
    """The body that tells a client of a fault."""
    said = error(fault)
    if isinstance(fault, Denied):  # the names that OpenAI gives to it, which clients look for
        said |= {"type": "invalid_request_error", "code": "invalid_api_key"}
    return {"error": said}


def answer(fault: Fault) -> Response:
    """The whole answer to a request that ended with a fault before anything was sent."""
    headers: dict[str, str] = {}
    if isinstance(fault, Busy | Unreachable):
        # what a fault knows about waiting, rounded up: coming back too early is what it is to prevent
        wait: float = vars(fault).get("retry_after", RETRY_SECONDS)
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    if isinstance(fault, Denied):
        headers["WWW-Authenticate"] = 'Bearer realm="headrace"'
    return Response(msgspec.json.encode(described(fault)), fault.status, headers, JSON)


def install(app: FastAPI) -> None:
    """Let `app` answer with error objects, whatever is raised and wherever."""
    app.add_exception_handler(Fault, _fault)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _fields)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)


async def _fault(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, Fault)
    return answer(fault)


async def _http(request: Request, raised: Exception) -> Response:
    """What the router says: no such path, not this method."""
    assert isinstance(raised, HTTPException)
    status = raised.status_code
    said = {
        "message": f"{PHRASES.get(status, str(raised.detail))}: {request.method} {request.url.path}",
        "type": ERROR_TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError"),
        "param": None,
        "code": status,
    }
    return Response(msgspec.json.encode({"error": said}), status, raised.headers, JSON)


async def _fields(_: Request, raised: Exception) -> Response:
    """Parameters of a path or query that are not of their type."""
    assert isinstance(raised, RequestValidationError)
    first = raised.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    return answer(Refused(f"{name}: {first['msg']}", param=name or None))


async def _gone(_: Request, raised: Exception) -> Response:
    """The client left while it was still sending. Nobody reads this."""
    return Response(status_code=499)


async def _unforeseen(_: Request, raised: Exception) -> Response:
    """A bug of ours. The server logs it; the client learns nothing of what is inside."""
    return answer(Broken("something failed on our side", hint="the server's log says what"))
