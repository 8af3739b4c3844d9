"""Streams and whole replies as ASGI responses, with an answer made by hand."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace.base.errors import Broken, Fault, Late
from headrace.engine.request import Request
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.settings import Serve
from headrace.serve.sse import ABORT, DONE, PING, EventStream, Updates, Whole, error_event, event, fault_of
from tests.serve.scripted import until

SCOPE = {"type": "http", "headers": [], "method": "POST"}


class Plain:
    """Frames that are the text itself."""

    def push(self, updates: Updates) -> bytes:
        return b"".join(update.text.encode() for _, update in updates)

    def end(self) -> bytes:
        return DONE

    def fail(self, fault: Fault) -> bytes:
        return error_event(fault) + DONE


class Client:
    """The other side of an ASGI app."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.blocked: asyncio.Event | None = None

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.blocked is not None:
            await self.blocked.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def answer() -> Answer:
    made = Answer("chatcmpl-1", [Request(id="1", prompt=(1,))], None)

    def end(it: Answer, finish: str, fault: Fault | None) -> None:
        it.put(0, Update(finish=finish))
        it.close(finish)

    made.canceller = end
    return made


def say(to: Answer, text: str, finish: str | None = None) -> None:
    to.streams[0].token_ids.append(7)
    to.put(0, Update(text, (7,), finish=finish))
    if finish:
        to.close(finish)


async def run(
    script: Callable[[Answer, Client], Any],
    whole: bool = False,
    scope: dict[str, Any] | None = None,
    **knobs: Any,
) -> tuple[Answer, Client]:
    """Respond with an answer to which a script happens."""
    it, client = answer(), Client()
    patience = knobs.pop("patience", None)
    stream = EventStream(it, Plain(), Serve(**knobs))
    stream.patience = patience or stream.patience  # shorter than any setting may be
    response = Whole(it, lambda: {"said": len(it.streams[0].token_ids)}) if whole else stream
    responding = asyncio.create_task(response({**SCOPE, **(scope or {})}, client.receive, client.send))
    await asyncio.sleep(0)
    await script(it, client)
    await asyncio.wait_for(responding, 60)
    return it, client


async def turns() -> None:
    """Enough turns of the loop for whatever waits for nothing but its turn, however long they take."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_nothing_is_sent_before_the_first_token():
    async def script(it: Answer, client: Client) -> None:
        await turns()
        assert client.sent == []
        say(it, "a")
        await turns()
        assert client.body == b"a"
        say(it, "b", "stop")

    _, client = asyncio.run(run(script))
    assert client.status == 200
    assert dict(client.sent[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert client.body == b"ab" + DONE
    assert [m.get("more_body") for m in client.sent[1:]][-1] is False


def test_what_came_together_is_sent_together():
    async def script(it: Answer, client: Client) -> None:
        for text in "abc":
            say(it, text)
        say(it, "d", "stop")

    _, client = asyncio.run(run(script))
    assert client.sent[1]["body"] == b"abcd"


def test_nothing_is_sent_for_an_update_that_shows_nothing():
    async def script(it: Answer, client: Client) -> None:
        say(it, "a")
        await turns()
        say(it, "")
        await turns()
        say(it, "b", "stop")

    _, client = asyncio.run(run(script))
    assert all(message["body"] for message in client.sent[1:-1])


@pytest.mark.parametrize("whole", [False, True])
def test_a_failure_before_the_first_token_has_its_own_status(whole: bool):
    async def script(it: Answer, client: Client) -> None:
        it.fault = Late("time is over")
        it.put(0, Update(finish="error"))
        it.close("error")

    _, client = asyncio.run(run(script, whole))
    assert client.status == 408
    assert b"time is over" in client.body


def test_a_failure_in_mid_stream_is_a_frame():
    async def script(it: Answer, client: Client) -> None:
        say(it, "a")
        await turns()
        it.fault = Late("time is over")
        it.put(0, Update(finish="error"))
        it.close("error")

    _, client = asyncio.run(run(script))
    assert client.status == 200
    assert client.body.startswith(b'adata: {"error":{"message":"time is over')
    assert client.body.endswith(b'"code":408}}\n\n' + DONE)


def test_a_whole_reply_waits_for_the_end():
    async def script(it: Answer, client: Client) -> None:
        say(it, "a")
        await turns()
        assert client.sent == []
        say(it, "b", "stop")

    _, client = asyncio.run(run(script, whole=True))
    assert client.body == b'{"said":2}'


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_whoever_leaves_ends_the_answer(whole: bool, begun: bool):
    async def script(it: Answer, client: Client) -> None:
        if begun:
            say(it, "a")
            await turns()
        client.gone.set()
        await turns()
        assert it.open == 0

    it, client = asyncio.run(run(script, whole))
    assert it.cause == "abort"
    assert DONE not in client.body
    assert bool(client.sent) is (begun and not whole)


def test_a_task_that_is_cancelled_ends_the_answer():
    async def main() -> Answer:
        it, client = answer(), Client()
        task = asyncio.create_task(EventStream(it, Plain(), Serve())(SCOPE, client.receive, client.send))
        await turns()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return it

    assert asyncio.run(main()).open == 0


def test_long_silence_is_broken_by_comments():
    async def script(it: Answer, client: Client) -> None:
        await until(lambda: client.body.count(PING) >= 2)
        say(it, "a", "stop")

    _, client = asyncio.run(run(script, ping_seconds=0.02))
    assert client.body.endswith(b"a" + DONE)


def test_short_silence_is_not_broken():
    async def script(it: Answer, client: Client) -> None:
        await asyncio.sleep(0.05)
        say(it, "a", "stop")

    _, client = asyncio.run(run(script, ping_seconds=600))
    assert PING not in client.body


def test_after_a_comment_a_failure_is_a_frame():
    async def script(it: Answer, client: Client) -> None:
        await until(lambda: PING in client.body)
        it.fault = Late("time is over")
        it.put(0, Update(finish="error"))
        it.close("error")

    _, client = asyncio.run(run(script, ping_seconds=0.02))
    assert client.status == 200
    assert b"time is over" in client.body


def test_a_reader_that_takes_nothing_is_hung_up_on():
    aborted: list[bool] = []

    async def script(it: Answer, client: Client) -> None:
        client.blocked = asyncio.Event()
        say(it, "a")
        await until(lambda: aborted and it.open == 0)
        client.blocked.set()  # a connection that is gone takes everything

    def abort() -> None:
        aborted.append(True)

    asyncio.run(run(script, scope={"extensions": {ABORT: abort}}, patience=0.04))


def test_a_reader_that_does_not_even_take_comments_is_hung_up_on():
    aborted: list[bool] = []

    async def script(it: Answer, client: Client) -> None:
        client.blocked = asyncio.Event()
        await until(lambda: aborted and it.open == 0)
        client.blocked.set()

    scope = {"extensions": {ABORT: lambda: aborted.append(True)}}
    asyncio.run(run(script, scope=scope, patience=0.04, ping_seconds=0.02))


def test_a_reason_is_found_for_every_failure():
    it = answer()
    assert isinstance(fault_of(it), Broken)
    it.fault = Late("over")
    assert fault_of(it) is it.fault


def test_an_event_is_one_line():
    assert event({"a": "b\nc\r\u2028"}) == 'data: {"a":"b\\nc\\r\u2028"}\n\n'.encode()
