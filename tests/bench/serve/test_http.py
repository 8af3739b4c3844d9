"""HTTP answers and server-sent events, in whatever pieces they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.serve.http import LONGEST_HEAD, Frames, Incoming, Malformed

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9;x=1\r\ndata: {1}\r\n" + b"2\r\n\n\n\r\n" + b"b\r\ndata: {22}\n\r\n1\r\n\n\r\n0\r\nTrailer: x\r\n\r\n"
)
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nConnection: close\r\n\r\nhello"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED
PIECES = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def cut(whole: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    while at < len(whole):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(whole[at : at + size])
        at += size
    return pieces


def read(whole: bytes, sizes: list[int]) -> tuple[Incoming, bytes]:
    body: list[bytes] = []
    incoming = Incoming(body.append)
    for piece in cut(whole, sizes):
        incoming.push(piece)
    return incoming, b"".join(body)


@given(PIECES)
def test_pieces_do_not_matter_to_a_chunked_answer(sizes: list[int]):
    incoming, body = read(CHUNKED, sizes)
    assert (incoming.status, incoming.done, incoming.keep) == (200, True, True)
    assert body == b"data: {1}\n\ndata: {22}\n\n"


@given(PIECES, st.sampled_from([SIZED, CONTINUED]))
def test_pieces_do_not_matter_to_a_sized_answer(sizes: list[int], whole: bytes):
    incoming, body = read(whole, sizes)
    assert (incoming.status, incoming.done, incoming.keep, body) == (404, True, False, b"hello")


def test_an_answer_may_end_with_its_connection():
    incoming, body = read(b"HTTP/1.0 200 OK\r\n\r\nall of it", [7])
    assert (incoming.done, incoming.keep, body) == (False, False, b"all of it")
    incoming.close()
    assert incoming.done


@pytest.mark.parametrize("whole", [SIZED[:-1], CHUNKED[:-4], CHUNKED[:60], b""])
def test_an_answer_that_is_cut_off_is_noticed(whole: bytes):
    incoming, _ = read(whole, [1000])
    with pytest.raises(Malformed, match="mid-answer"):
        incoming.close()


@pytest.mark.parametrize(
    "whole",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        CHUNKED.replace(b"9;x=1", b"zz"),
        CHUNKED.replace(b"2\r\n\n\n\r\n", b"1\r\n\n\n\r\n"),
        b"x" * (LONGEST_HEAD + 1),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 2000,
    ],
)
def test_what_is_not_http_is_malformed(whole: bytes):
    with pytest.raises(Malformed):
        read(whole, [len(whole)])


def test_an_empty_answer_is_over_with_its_head():
    for head in (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"):
        assert read(head, [100])[0].done


STREAM = (
    b": hello\n\ndata: {1}\r\n\r\ndata:{2}\n\nevent: x\ndata: a\ndata: b\n\nid: 7\n\ndata: [DONE]\n\ndata: re"
)


@given(PIECES)
def test_pieces_do_not_matter_to_events(sizes: list[int]):
    frames = Frames()
    found = [frame for piece in cut(STREAM, sizes) for frame in frames.push(piece)]
    assert found == [b"{1}", b"{2}", b"a\nb", b"[DONE]"]
    assert frames.push(b"st\n\n") == [b"rest"]
