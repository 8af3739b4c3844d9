"""What a server is asked before it is loaded."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from headrace.base.errors import Denied, Refused, UnknownName, Unreachable
from headrace.bench.serve.connection import Target
from headrace.bench.serve.data import WORDS
from headrace.bench.serve.probe import FEWEST, fetch, find_model, version, weigh_words

Reply = Callable[[str, Any], tuple[int, Any]]


@contextmanager
def server(reply: Reply) -> Iterator[Target]:
    """Answers each path with what `reply` says to its body."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            status, body = reply(self.path, json.loads(self.rfile.read(length)) if length else None)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    serving = HTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=serving.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Target.of(f"http://127.0.0.1:{serving.server_port}/v1", {"X-Key": "k"})
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


def models(*names: str) -> Reply:
    return lambda path, body: (200, {"data": [{"id": name, "max_model_len": 99} for name in names]})


def test_the_only_model_is_taken_and_another_must_exist():
    with server(models("one")) as target:
        assert find_model(target, None) == ("one", 99)
        assert find_model(target, "one") == ("one", 99)
        with pytest.raises(UnknownName, match="'on'"):
            find_model(target, "on")
    with server(models("one", "two")) as target, pytest.raises(Refused, match="2 models"):
        find_model(target, None)


@pytest.mark.parametrize("body", [b"<html>", [1], {"data": 3}, {"data": [{}]}, None])
def test_a_server_without_a_list_needs_a_name(body: Any):
    with server(lambda path, _: (404, body)) as target:
        assert find_model(target, "any") == ("any", None)
        with pytest.raises(Refused, match="no list of models"):
            find_model(target, None)


def test_a_key_is_asked_for():
    closed = server(lambda path, _: (401, {"error": {"message": "no key"}}))
    with closed as target, pytest.raises(Denied, match="no key"):
        find_model(target, None)


def test_nobody_there():
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetch(Target.of("http://127.0.0.1:9", {}), "/v1/models")


def counting(weight: Callable[[str], int]) -> Reply:
    return lambda path, body: (200, {"count": sum(weight(word) for word in body["prompt"].split())})


def test_words_of_several_tokens_are_left_out():
    heavy = set(WORDS[::25])
    with server(counting(lambda word: 2 if word in heavy else 1)) as target:
        words, weight = weigh_words(target, "m")
    assert set(words) == set(WORDS) - heavy
    assert weight == 1


def test_where_every_word_is_several_tokens_their_average_counts():
    with server(counting(len)) as target:
        words, weight = weigh_words(target, "m")
    assert words == WORDS
    assert weight == pytest.approx(sum(map(len, WORDS)) / len(WORDS))
    assert len(words) > FEWEST


@pytest.mark.parametrize("reply", [(404, {}), (200, {"x": 1}), (200, b"no json")])
def test_a_server_that_does_not_count_gets_words_as_they_are(reply: tuple[int, Any]):
    with server(lambda path, body: reply) as target:
        assert weigh_words(target, "m") == (WORDS, 1.0)


@pytest.mark.parametrize(
    ("reply", "expected"), [((200, {"version": "1.2"}), "1.2"), ((404, {}), None), ((200, b"<"), None)]
)
def test_the_version_is_asked_and_may_be_unknown(reply: tuple[int, Any], expected: str | None):
    with server(lambda path, body: reply) as target:
        assert version(target) == expected
