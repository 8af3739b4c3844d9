"""The client against a server that streams, and against one that misbehaves."""

import asyncio

import pytest

from headrace.base.errors import Refused
from headrace.bench.serve.client import Client, Reading, Turn
from headrace.bench.serve.connection import Target
from headrace.bench.serve.dialect import Ask, read, said_by
from headrace.bench.serve.http import Malformed
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.stub import Stub
from tests.bench.serve.playing import play, turns


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_stream_is_noted_token_by_token(endpoint: str):
    played = play(turns(3, 7), ask=Ask(model="stub", endpoint=endpoint))  # type: ignore[arg-type]
    assert len(played.samples) == 3
    for sample in played.samples:
        assert (sample.outcome, sample.status, sample.reason) == ("ok", 200, "length")
        assert (sample.output_tokens, sample.counted, len(sample.chunks)) == (7, True, 6)
        assert sample.prompt_tokens > 0
        moments = [sample.scheduled, sample.sent, sample.opened, sample.first, sample.last, sample.ended]
        assert moments == sorted(moments)  # type: ignore[type-var]
        assert sample.first + sum(sample.chunks) == pytest.approx(sample.last)
    assert played.connections == 1, "one after the other, on one connection"


def test_the_role_is_not_the_first_token():
    (sample,) = play(turns(1), Stub(0.001, wait=0.05)).samples
    assert sample.opened is not None
    assert sample.first is not None
    assert sample.first - sample.sent >= 0.05
    assert sample.opened - sample.sent < sample.first - sample.sent


def test_an_answer_in_one_piece_has_no_first_token():
    (sample,) = play(turns(1), ask=Ask(model="stub", stream=False)).samples
    assert (sample.outcome, sample.output_tokens, sample.first) == ("ok", 5, None)
    assert sample.last is not None


@pytest.mark.parametrize(
    ("trouble", "outcome", "status", "said"),
    [
        ("busy", "refused", 429, "HTTP 429: full"),
        ("error", "error", 500, "HTTP 500: it broke"),
        ("cut", "error", 0, "connection"),
        ("garbage", "error", 0, "malformed: a frame"),
        ("no-end", "error", 200, "malformed: the stream ends without"),
        ("late-error", "error", 0, "malformed: error in mid-stream: fell over"),
        ("empty", "error", 200, "malformed: the answer has no tokens"),
        ("silent", "error", 0, "no end within"),
    ],
)
def test_every_way_to_go_wrong_is_counted_and_the_next_goes_well(
    trouble: str, outcome: str, status: int, said: str
):
    timeout = (
        0.3 if trouble == "silent" else 120
    )  # so short that on a busy machine the good one may not be answered
    played = play(turns(2), Stub(0.001, trouble=trouble, every=2), timeout=timeout)
    good, bad = sorted(played.samples, key=lambda sample: sample.outcome != "ok")
    assert good.outcome == "ok" or trouble == "silent"
    assert (bad.outcome, bad.status) == (outcome, status)
    assert said in bad.reason


def test_a_server_that_is_not_there_is_counted_too():
    samples: list[Sample] = []
    target = Target.of("http://127.0.0.1:9", {})

    async def run() -> None:
        client = Client(target, Ask(), samples.append, start=asyncio.get_running_loop().time())
        await client.closed_loop(iter(turns(2)), 1, 5, 5)

    asyncio.run(run())
    assert {sample.outcome for sample in samples} == {"error"}
    assert all(sample.reason.startswith("connection") for sample in samples)


def test_an_open_loop_does_not_wait_for_answers():
    played = play(turns(8, 3), Stub(0.001, wait=1.0), due=[n * 0.01 for n in range(8)])
    samples = sorted(played.samples, key=lambda sample: sample.scheduled)
    assert [sample.scheduled for sample in samples] == pytest.approx([n * 0.01 for n in range(8)])
    assert samples[-1].sent < samples[0].ended, "the last was sent before the first was answered"
    assert all(sample.sent >= sample.scheduled for sample in samples)
    assert played.connections == 8


def test_a_closed_loop_keeps_its_streams_busy():
    played = play(turns(12, 3), Stub(0.001), streams=3)
    assert len(played.samples) == 12
    assert played.connections == 3


def test_what_is_not_over_in_time_is_unfinished():
    played = play(turns(2, 30000), Stub(0.002), due=[0.0, 0.0], until=1.0)
    assert [sample.outcome for sample in played.samples] == ["unfinished"] * 2
    assert all(0 < sample.output_tokens < 30000 for sample in played.samples)


def test_some_are_hung_up_on_and_say_so():
    played = play(turns(40, 50), Stub(0.0), streams=4, cancel=0.5, seed=3)
    left = [sample for sample in played.samples if sample.outcome == "cancelled"]
    assert 8 <= len(left) <= 32
    assert all(0 < sample.output_tokens < 50 for sample in left)
    assert {sample.outcome for sample in played.samples} == {"ok", "cancelled"}


def test_later_turns_bring_what_was_said():
    conversation = [Turn("one", 3), Turn("two", 3, think=0.05), Turn("three", 3)]
    played = play([conversation])
    first, second, third = played.samples
    assert [sample.turn for sample in played.samples] == [0, 1, 2]
    assert first.prompt_tokens < second.prompt_tokens < third.prompt_tokens
    assert second.scheduled - first.ended >= 0.05


def test_a_conversation_ends_with_what_goes_wrong():
    played = play([[Turn("one", 3), Turn("two", 3)]], Stub(0.001, trouble="busy"))
    assert len(played.samples) == 1


def test_tokens_of_one_chunk_are_counted_where_the_server_counts():
    sample = Sample(0.0, 0.0)
    reading = Reading(sample, 0.0, True, False, None)
    frames = [
        b'{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":{"completion_tokens":0}}',
        b'{"choices":[{"delta":{"content":"a b"}}],"usage":{"completion_tokens":2}}',
        b'{"choices":[{"delta":{"content":""}}],"usage":{"completion_tokens":3}}',
        b'{"choices":[{"delta":{"reasoning_content":"c"}}],"usage":{"completion_tokens":4}}',
        b'{"choices":[],"usage":{"completion_tokens":4,"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}}',
        b"[DONE]",
    ]
    reading.body(b"".join(b"data: %b\n\n" % frame for frame in frames))
    reading.close(200)
    assert (sample.output_tokens, sample.tokens, len(sample.chunks)) == (4, [2, 1, 1], 2)
    assert (sample.prompt_tokens, sample.cached_tokens, sample.outcome) == (9, 8, "ok")


@pytest.mark.parametrize("frame", [b"", b"[]", b"{", b'{"choices": 3}', b"\xff"])
def test_what_is_no_chunk_is_malformed(frame: bytes):
    with pytest.raises(Malformed):
        read(frame)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b"<html>", "<html>"),
        (b"\xff", "\ufffd"),
    ],
)
def test_the_words_of_an_error_are_found(body: bytes, said: str):
    assert said_by(body) == said


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://h:1/v1", "h", 1, ""),
        ("h:1", "h", 1, ""),
        ("https://h/base/v1/", "h", 443, "/base"),
        ("http://[::1]:8000", "::1", 8000, ""),
    ],
)
def test_addresses(url: str, host: str, port: int, path: str):
    target = Target.of(url, {})
    assert (target.host, target.port, target.path) == (host, port, path)
    assert target.head("POST", "/x", 3).startswith(f"POST {path}/x HTTP/1.1\r\nHost: ".encode())


@pytest.mark.parametrize(
    "url",
    ["ftp://h", "http://", "http://h:x", "http://h:99999", "http://[::1", "http://a..b", "http://h/\u20ac"],
)
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(Refused, match="--url"):
        Target.of(url, {})
