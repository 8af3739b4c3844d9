"""Every kind of error is the OpenAI object."""

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from starlette.testclient import TestClient

from headrace.base import errors as faults
from headrace.serve import errors
from tests.serve.reading import error


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.Refused("no", param="top_p"), "BadRequestError"),
        (faults.Denied("no"), "invalid_request_error"),
        (faults.Forbidden("no"), "PermissionDeniedError"),
        (faults.UnknownName("no"), "NotFoundError"),
        (faults.Late("no"), "RequestTimeoutError"),
        (faults.TooLarge("no"), "RequestTooLargeError"),
        (faults.Busy("no", retry_after=0.2), "RateLimitError"),
        (faults.Broken("no"), "InternalServerError"),
        (faults.Unreachable("no"), "ServiceUnavailableError"),
    ],
)
def test_faults(fault: faults.Fault, kind: str):
    made = errors.answer(fault)
    said = error(
        httpx.Response(made.status_code, headers=dict(made.headers), content=bytes(made.body)), fault.status
    )
    assert said["type"] == kind
    assert said["param"] == fault.param
    assert ("retry-after" in made.headers) is (fault.status in (429, 503))
    assert ("www-authenticate" in made.headers) is (fault.status == 401)


@pytest.mark.parametrize(("seconds", "said"), [(0.01, "1"), (1.0, "1"), (2.3, "3"), (600.0, "600")])
def test_when_to_come_back_is_rounded_up(seconds: float, said: str):
    assert errors.answer(faults.Busy("full", retry_after=seconds)).headers["retry-after"] == said


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(redirect_slashes=False)
    errors.install(app)

    @app.get("/number/{n}")
    async def number(n: int) -> int:
        return n

    @app.get("/bug")
    async def bug() -> None:
        raise ValueError("secret at 0x7f00")

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")

    @app.get("/refused")
    async def refused() -> None:
        raise faults.Refused("no", param="x", hint="yes")

    return TestClient(app, raise_server_exceptions=False)


def test_paths_and_methods_that_are_not_there(client: TestClient):
    assert "GET /nothing" in error(client.get("/nothing"), 404)["message"]
    assert error(client.post("/refused"), 405)["type"] == "MethodNotAllowedError"


def test_parameters_of_a_path(client: TestClient):
    assert error(client.get("/number/x"), 400)["param"] == "n"


def test_a_bug_tells_nothing_of_what_is_inside(client: TestClient):
    said = error(client.get("/bug"), 500)
    assert "secret" not in str(said)
    assert "ValueError" not in str(said)


def test_what_routes_raise(client: TestClient):
    assert error(client.get("/teapot"), 418)["message"].startswith("short and stout")
    assert error(client.get("/refused"), 400) == {
        "message": "no (yes)",
        "type": "BadRequestError",
        "param": "x",
        "code": 400,
    }
