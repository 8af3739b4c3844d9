"""Any body gets an answer that the document foresees, and the server is alive after it."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import httpx
import hypothesis.strategies as st
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headrace.engine.start import Started
from headrace.serve.app import make_app
from headrace.serve.frontend import Frontend
from headrace.serve.settings import Serve
from headrace.serve.waits import Waits
from tests.serve.local import Running, serving, started
from tests.serve.reading import frames, text

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FRONT = cast(Frontend, SimpleNamespace(front=0, waits=Waits()))
DOCUMENT = make_app(FRONT, Serve()).openapi()
NEEDED = {"messages", "prompt", "tokens", "input"}
PATHS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Started:
    return started(tmp_path_factory.mktemp("fuzz") / "tiny")


@pytest.fixture(scope="module")
def server(engine: Started) -> Iterator[Running]:
    with serving(engine) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_there_are_paths_to_try():
    assert {("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/tokenize")} <= set(
        PATHS
    )


class Canary(threading.Thread):
    """Streams one greedy answer after the other, beside whatever else is asked for; all must be the same."""

    def __init__(self, url: str):
        super().__init__()
        self.url, self.texts, self.ended = url, [], threading.Event()

    def run(self) -> None:
        body = {"prompt": "canary", "max_tokens": 40, "temperature": 0, "stream": True, "ignore_eos": True}
        with httpx.Client(base_url=self.url, timeout=120) as client:
            while not (self.texts and self.ended.is_set()):
                self.texts.append(text(frames(client.post("/v1/completions", json=body))))

    def __enter__(self) -> "Canary":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_no_body_breaks_the_server(api: schemathesis.BaseSchema, server: Running, method: str, path: str):
    operation = api[path][method]
    examples = 25 if method == "POST" else 5

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    def run(case: schemathesis.Case, data: st.DataObject) -> None:
        if isinstance(case.body, dict):
            # With forty odd fields at once hardly any body would get past the first check.
            fields = sorted(map(str, case.body))
            kept = data.draw(st.sets(st.sampled_from(fields), max_size=3)) if fields else set()
            body = {name: value for name, value in case.body.items() if name in kept | NEEDED}
            limit = "max_output_tokens" if "responses" in path else "max_tokens"
            case.body = {**body, limit: min_of(body.get(limit), 4)}  # nobody waits for long answers here
        response = case.call(timeout=120)
        case.validate_response(response, checks=CHECKS)

    with Canary(server.url) as canary:
        given(case=operation.as_strategy(), data=st.data())(run)()
    assert len(set(canary.texts)) == 1
    assert httpx.get(f"{server.url}/health").status_code == 200


def min_of(value: object, most: int) -> object:
    """A number that is not too large; whatever else it was stays as it was."""
    if value is None:
        return most
    return min(value, most) if type(value) is int else value


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[]", b"\xff", b'{"a":' * 3000, b"\x00" * 100])
def test_no_bytes_break_the_server(server: Running, path: str, raw: bytes):
    answer = httpx.post(server.url + path, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
