"""What a request may bring: decoding, depth, counts, bytes, time."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from headrace.base.errors import Late, Refused, TooLarge
from headrace.engine.start import Started
from headrace.serve.limits import DEEPEST, LARGE, Limits, check, decoded
from headrace.serve.settings import Serve
from headrace.serve.waits import Waits
from tests.serve.local import Running, serving
from tests.serve.reading import error, posted

COMPLETIONS = "/v1/completions"


def test_an_object_is_decoded():
    assert decoded(b' {"a": [1, {"b": "\\"}"}], "c": "\\u00e9"} ') == {"a": [1, {"b": '"}'}], "c": "\u00e9"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nothing",
        b"[]",
        b'"text"',
        b"3",
        b"null",
        b'{"a": 1} {"b": 2}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": [[{"b": 1, "\\u0062": 2}]]}',
        b'{"a": "x\\\\", "a": 2}',
        b'{"a\\\\": 1, "a\\\\": 2}',
        b'{"a": 99999999999999999999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}",
        b'{"a": ' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1),
        b'{"a": ' + b"[" * 200_000,
    ],
)
def test_what_is_not_exactly_one_object_is_refused(raw: bytes):
    with pytest.raises(Refused):
        decoded(raw)


@pytest.mark.parametrize(
    "found",
    [
        {"a": '": "', "b": ': "x"'},
        {"a": {"a": {"a": "a"}}, "b": [{"a": 1}, {"a": 2}]},
        {"\\": 1, '"': 2, ":": 3, '\\"': 4},
        {"a": [[]] * 50, "b": [1, 2.5, None, True]},
        {"a": {}, "": ""},
    ],
)
def test_keys_that_only_look_alike_are_no_reason_to_refuse(found: dict[str, Any]):
    assert decoded(msgspec.json.encode(found)) == found


def test_depth_may_be_what_the_limit_says():
    deep = b'{"a": ' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"
    assert decoded(deep)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": "a" * 513}, "stop"),
        ({"stop": ["a", "b" * 513]}, "stop"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"tools": [{}] * 513}, "tools"),
        ({"messages": [{}] * 4097}, "messages"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a"] * 4, "n": 3}, "n"),
        ({"n": 11}, "n"),
        ({"model": "m" * 513}, "model"),
    ],
)
def test_counts_have_an_upper_bound(body: dict[str, Any], param: str):
    with pytest.raises(Refused) as found:
        check(body, Serve(max_prompts=8, max_answers=10))
    assert found.value.param == param


def test_at_the_bound_nothing_is_refused():
    assert (
        check({"stop": ["a" * 512] * 64, "prompt": [[1]] * 5, "n": 2}, Serve(max_prompts=8, max_answers=10))
        == 10
    )
    check(
        {"prompt": [1] * 100, "n": True, "stop": 3}, Serve(max_prompts=8)
    )  # what is no list is said elsewhere


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_another_content_type_is_refused(http: httpx.Client, kind: str):
    answer = http.post(
        COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": kind} if kind else {}
    )
    assert "content type" in error(answer, 400)["message"]


def test_a_packed_body_is_refused(http: httpx.Client):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error(http.post(COMPLETIONS, content=b"\x1f\x8b" + bytes(100), headers=headers), 400)


def test_the_content_type_may_have_parameters(http: httpx.Client):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = http.post(COMPLETIONS, content=b'{"prompt": "a", "max_tokens": 1}', headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("end", [b"}", b""])
def test_a_large_body_is_decoded_like_a_small_one(http: httpx.Client, end: bytes):
    body = b'{"max_tokens": 1, "prompt": "a"' + b" " * LARGE + end
    answer = http.post(COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == (200 if end else 400)


@pytest.fixture(scope="module")
def small(tiny_engine: Started):
    with serving(tiny_engine, Serve(port=0, max_body=2000, body_seconds=1)) as running:
        yield running


def test_a_large_body_is_refused_before_it_is_read(small: Running):
    with small.connect() as client:
        client.sendall(posted(b"", length=1_000_000_000))
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_in_pieces_is_refused(small: Running):
    answer = httpx.post(
        small.url + COMPLETIONS,
        content=iter([b'{"prompt": "'] + [b"a" * 100] * 50),
        headers={"Content-Type": "application/json"},
    )
    assert "2000 bytes" in error(answer, 413)["message"]


def test_at_the_limit_a_body_is_read(small: Running):
    body = b'{"max_tokens": 1, "prompt": "a"'
    body += b" " * (2000 - len(body) - 1) + b"}"
    headers = {"Content-Type": "application/json"}
    assert httpx.post(small.url + COMPLETIONS, content=body, headers=headers).status_code == 200
    error(httpx.post(small.url + COMPLETIONS, content=body + b" ", headers=headers), 413)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([(0.0, b"a" * 6, True), (0.0, b"a" * 5, False)], TooLarge),
        ([(0.0, b"a", True), (600.0, b"a", False)], Late),
        ([(0.0, b"a" * 10, False)], None),
    ],
)
def test_bytes_and_time_are_counted(messages: list[tuple[float, bytes, bool]], fault: type[Exception] | None):
    left = list(messages)

    async def receive() -> Any:
        wait, body, more = left.pop(0)
        await asyncio.sleep(wait)
        return {"type": "http.request", "body": body, "more_body": more}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def run() -> None:
        limits = Limits(app, Serve(max_body=1024, body_seconds=1), Waits())
        limits.most, limits.seconds = 10, 0.05 if fault is Late else 60
        await limits({"type": "http", "headers": []}, receive, app)

    if fault is None:
        asyncio.run(run())
    else:
        with pytest.raises(fault):
            asyncio.run(run())
