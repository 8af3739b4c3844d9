"""The layers that every request passes."""

import json
from collections.abc import Iterator

import httpx
import pytest
from fastapi import APIRouter

from headrace.base.errors import Fault
from headrace.engine.start import Started
from headrace.serve.record import Watcher
from headrace.serve.settings import Serve
from tests.looped import wait_for
from tests.serve.local import Running, serving
from tests.serve.reading import Json, error, posted

ORIGIN = "https://chat.example"


@pytest.fixture(scope="module")
def shared(tiny_engine: Started) -> Iterator[Running]:
    with serving(tiny_engine, Serve(port=0, cors=ORIGIN, api_key="key")) as running:
        yield running


def test_other_origins_are_closed_out(http: httpx.Client):
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = http.options("/v1/chat/completions", headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = http.get("/v1/models", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_origin_may_be_let_in(shared: Running):
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = httpx.options(shared.url + "/v1/chat/completions", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    refused = httpx.get(shared.url + "/v1/models", headers={"Origin": ORIGIN})
    assert error(refused, 401)
    assert refused.headers["access-control-allow-origin"] == ORIGIN  # or the page could not read why
    other = httpx.options(shared.url + "/v1/models", headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


class Ear(Watcher):
    """Hears of what is refused."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    def refused(self, kind: str, fault: Fault, id: str) -> None:
        self.heard.append((kind, type(fault).__name__, id))


@pytest.mark.parametrize(
    ("path", "kind", "given"),
    [
        ("/v1/chat/completions", "chat", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/completions", "completion", {"prompt": "hi", "max_tokens": 1}),
        ("/v1/responses", "response", {"input": "hi", "max_output_tokens": 1}),
    ],
)
def test_watchers_hear_once_of_what_is_refused_and_under_its_id(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str, kind: str, given: Json
):
    ear = Ear()
    monkeypatch.setattr(server.front, "watchers", [*server.front.watchers, ear])

    def post(name: str, raw: str, status: int) -> None:
        headers = {"X-Request-Id": name, "Content-Type": "application/json"}
        assert httpx.post(server.url + path, content=raw, headers=headers).status_code == status

    post("a", "{", 400)
    post("b", json.dumps({**given, "temperature": 9}), 400)
    post("c", json.dumps({**given, "model": "none"}), 404)
    post("d", json.dumps(given), 200)
    monkeypatch.setattr(server.front._queue, "take", lambda prompts: False)
    post("e", json.dumps(given), 429)
    faults = [("Refused", "a"), ("Refused", "b"), ("UnknownName", "c"), ("Busy", "e")]
    assert ear.heard == [(kind, *fault) for fault in faults]


@pytest.mark.parametrize(
    ("path", "method", "sent"),
    [
        ("/v1/chat/completions", "POST", "x-stainless-os,x-stainless-retry-count"),
        ("/v1/responses/x", "DELETE", ""),
    ],
)
def test_pages_may_do_what_libraries_do(shared: Running, path: str, method: str, sent: str):
    """OpenAI's for browsers sends headers of its own and forgets responses."""
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": method}
    answer = httpx.options(shared.url + path, headers={**headers, "Access-Control-Request-Headers": sent})
    assert answer.status_code == 200
    assert method in answer.headers["access-control-allow-methods"]
    assert set(sent.split(",")) <= {*answer.headers["access-control-allow-headers"].split(","), ""}


def test_every_answer_has_a_request_id(http: httpx.Client):
    for method, path in [("GET", "/version"), ("GET", "/none"), ("POST", "/v1/completions")]:
        one, two = (http.request(method, path).headers["x-request-id"] for _ in range(2))
        assert one != two
        assert (
            http.request(method, path, headers={"X-Request-ID": "a:b-c.d_1"}).headers["x-request-id"]
            == "a:b-c.d_1"
        )


@pytest.mark.parametrize("name", ["a b", "a;b", "a" * 129, "\u00e9", "{}", ""])
def test_an_id_that_could_harm_a_log_is_replaced(http: httpx.Client, name: str):
    answer = http.get("/version", headers={"X-Request-Id": name.encode()})
    assert answer.headers["x-request-id"] != name
    assert answer.headers["x-request-id"].isalnum()


def test_one_name_may_be_used_for_two_requests_at_once(server: Running, http: httpx.Client):
    body = {"prompt": "a", "max_tokens": 2, "request_id": "same"}
    server.front.held.clear()
    try:
        with server.connect() as first:
            first.sendall(posted(json.dumps(body).encode()))
            wait_for(lambda: server.front.answers)
            other = http.post("/v1/completions/render", json=body).json()[0]["request_id"]
    finally:
        server.front.held.set()
    assert other.startswith("cmpl-same-")


def test_further_routes_and_who_hears_of_requests(tiny_engine: Started):
    told: list[tuple[str, str, int]] = []
    more = APIRouter()

    @more.get("/more/{name}")
    async def one(name: str) -> str:
        return name

    def tell(path: str, method: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        told.append((path, method, status))

    with serving(tiny_engine, routers=[more], told=tell) as running:
        assert httpx.get(running.url + "/more/x").json() == "x"
        httpx.get(running.url + "/v1/models/none")
        httpx.get(running.url + "/none")
        httpx.post(running.url + "/v1/completions", json={"prompt": "a", "stream": True, "max_tokens": 2})
    assert told == [
        ("/more/{name}", "GET", 200),
        ("/v1/models/{name:path}", "GET", 404),
        ("", "GET", 404),
        ("/v1/completions", "POST", 200),
    ]


def test_the_page_may_be_left_out(tiny_engine: Started, http: httpx.Client):
    assert http.get("/").status_code == 200
    with serving(tiny_engine, Serve(port=0, page=False)) as running:
        error(httpx.get(running.url + "/"), 404)
