"""Requests through a front end to a scripted engine and back: every way to begin and to end."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.base.errors import BadCheckpoint, Broken, Busy, Late, Refused, Unreachable
from headrace.bench.frontend import write_tokenizer
from headrace.engine.request import Event
from headrace.serve.answer import Answer
from headrace.serve.frontend import LONG_TEXT, Frontend
from headrace.serve.loop import Host
from headrace.serve.record import Watcher
from headrace.serve.scripted import Scripted
from headrace.serve.settings import Serve
from headrace.serve.wire import Add, Cancel, Events
from headrace.serve.words import read_words
from tests import tiny
from tests.looped import looped
from tests.serve.scripted import ask, command, config, expected, finish, running, until
from tests.serve.watched import FACTS


class Ear(Watcher):
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.records: list[Answer] = []

    def submitted(self, answer) -> None:
        self.heard.append(("submitted", answer.id))

    def measured(self, stats) -> None:
        self.heard.append(("measured", stats.steps))

    def updated(self, answer, index, update, event) -> None:
        self.heard.append(("updated", index))

    def ended(self, record) -> None:
        self.heard.append(("ended", record.cause))
        self.records.append(record)


@looped
async def test_requests_of_one_turn_are_one_message_and_keep_their_place():
    async with running() as (front, _):
        sent, link = [], front.connection._link
        send = link.send
        link.send = lambda number, message: (sent.append(message), send(number, message))  # type: ignore[method-assign]
        requests = [ask([10, i], 5) for i in range(10)]
        answers = [front.submit([request]) for request in requests]
        gone = front.submit([ask([11], 3000)])
        gone.cancel()
        later = front.submit([ask([12], 3)])
        assert await finish(gone) == [([], "abort")]
        for request, answer in zip(requests, answers, strict=True):
            assert await finish(answer) == [(expected(request), "length")]
        assert (await finish(later))[0][1] == "length"
        adds = [len(message.requests) for message in sent if isinstance(message, Add)]
        assert adds == [11, 1]
        assert [type(message) for message in sent] == [Add, Cancel, Add]


@looped
async def test_what_was_not_sent_when_the_engine_died_is_sent_once():
    async with running() as (front, supervisor):
        assert supervisor.engine is not None
        request = ask([10], 50)
        answer = front.submit([request])
        front.connection.lose()
        supervisor.engine.kill()
        assert await finish(answer) == [(expected(request), "length")]
        assert front.stats.faults == 0


@looped
async def test_answers_are_complete_and_end_once():
    async with running() as (front, _):
        requests = [ask([10, i], 5 + i % 7, seed=i, temperature=1.0) for i in range(100)]
        answers = [front.submit([request]) for request in requests]
        for request, answer in zip(requests, answers, strict=True):
            assert await finish(answer) == [(expected(request), "length")]
            assert await answer.next() == []
            assert answer.fault is None
        assert not front.answers


@looped
async def test_several_prompts_and_answers_of_one_request():
    async with running() as (front, _):
        ear = Ear()
        front.watchers.append(ear)
        front.count = ear.updated
        requests = [ask([p, p], 3, n=2, seed=s, temperature=1.0) for p in (10, 20, 30) for s in (1, 2)]
        answer = front.submit(requests, id="six", kind="completion", name="mine", trace="00-1-2-03")
        assert list(front.answers) == ["six"]
        assert await finish(answer) == [(expected(request), "length") for request in requests]
        (record,) = ear.records
        assert (record.id, record.kind, record.name, record.trace) == (
            "six",
            "completion",
            "mine",
            "00-1-2-03",
        )
        assert (record.prompts, record.n, record.prompt_tokens, record.generated) == (3, 2, 6, 18)
        assert (record.cause, record.status, record.resumes) == ("length", 200, 0)
        times = [record.arrived, record.scheduled, record.first, record.last, record.ended]
        assert times == sorted(times)
        assert ear.heard[0] == ("submitted", "six")
        assert sum(what == "updated" for what, _ in ear.heard) == 18
        assert ("ended", "length") in ear.heard


@looped
async def test_a_stop_string_ends_the_request_in_the_engine(tmp_path: Path):
    folder = tiny.folder(tmp_path / "model")
    settings = config(model__path=str(folder))
    async with running(settings) as (front, _):
        assert front.intake.tokenizer is not None
        plain = ask([10, 11], 200, detokenize=True)
        answer = front.submit([plain])
        await finish(answer)
        text = answer.streams[0].text
        stop = text[20:23]
        again = ask([10, 11], 3000, detokenize=True, stop=[stop])
        answer = front.submit([again])
        ((_, end),) = await finish(answer)
        assert end == "stop"
        assert answer.streams[0].text == text[: text.index(stop)]
        assert answer.streams[0].stop == stop
        await until(lambda: front.stats.running == 0)
        assert front.stats.generated < 200 + 3000, "the engine went on"


@pytest.mark.parametrize("begun", [True, False])
@looped
async def test_a_client_that_leaves_frees_its_place_at_once(begun: bool):
    async with running(config(schedule__rows=2, memory__kv_blocks=100), command(0.05)) as (front, _):
        ear = Ear()
        answers = [front.submit([ask([10, i] * 50, 1000)]) for i in range(3)]
        front.watchers.append(ear)
        await answers[0].next()
        await until(lambda: front.stats.running == 2 and front.stats.waiting == 1)
        leaves = answers[0] if begun else answers[2]
        leaves.cancel()
        leaves.cancel()
        assert [finish for _, (_, finish) in enumerate(await finish(leaves))] == ["abort"]
        assert [record.cause for record in ear.records] == ["abort"]
        assert ear.records[0].status == 499
        await until(lambda: (front.stats.running, front.stats.waiting) == (2, 0))
        for answer in answers:
            answer.cancel()
        assert not front.answers


@looped
async def test_a_request_whose_time_is_over_ends_with_late():
    async with running(words=command(0.02)) as (front, _):
        ear = Ear()
        front.watchers.append(ear)
        answer = front.submit([ask([10], 1000), ask([11], 2)], timeout_ms=300)
        other = front.submit([ask([12], 30)])
        (tokens, end), (short, first) = await finish(answer)
        assert (end, first) == ("error", "length" if len(short) == 2 else "error")
        assert tokens == expected(ask([10], len(tokens)))
        assert isinstance(answer.fault, Late)
        assert answer.fault.status == 408
        assert "0.3 seconds" in answer.fault.message
        (late,) = [record for record in ear.records if record.id == answer.id]
        assert (late.cause, late.status) == ("timeout", 408)
        assert await finish(other) == [(expected(ask([12], 30)), "length")]


@looped
async def test_the_default_timeout_is_a_knob():
    async with running(config(serve__timeout=0.2), command(0.02)) as (front, _):
        late, longer = front.submit([ask([10], 1000)]), front.submit([ask([10], 15)], timeout_ms=60_000)
        assert (await finish(late))[0][1] == "error"
        assert (await finish(longer))[0][1] == "length"


@looped
async def test_what_cannot_be_served_is_refused():
    async with running() as (front, _):
        ear = Ear()
        front.watchers.append(ear)
        refused = front.submit([ask([7, 7, 4], 20)])
        assert await finish(refused) == [([], "error")]
        assert isinstance(refused.fault, Refused)
        assert (refused.fault.param, refused.fault.status) == ("prompt", 400)
        assert [record.status for record in ear.records if record.id == refused.id] == [400]


@looped
async def test_the_next_engine_may_have_less_room():
    async with running() as (front, _):
        front.meet(msgspec.structs.replace(front.facts, max_len=50), None)
        assert front.intake.max_len == 50


@looped
async def test_before_the_engine_is_ready():
    settings = config()
    async with running(settings) as (front, supervisor):
        second = Frontend(supervisor.folder, settings.serve, front=5)  # to whom no engine speaks
        try:
            assert not second.ready
            for look in (lambda: second.facts, lambda: second.intake):
                with pytest.raises(Unreachable, match="not ready yet: starting"):
                    look()
            with pytest.raises(Unreachable):
                second.submit([ask([5])])
        finally:
            second.close()
        assert front.ready
        assert front.facts.served == ("script",)


@looped
async def test_a_tokenizer_that_cannot_be_read_is_said(tmp_path: Path, caplog):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadCheckpoint):
        async with running(config(model__path=str(tmp_path))):
            pass


@looped
async def test_an_error_nobody_foresaw_does_not_leave_everybody_waiting(monkeypatch, caplog):
    def fail(source):
        raise ZeroDivisionError("one")

    monkeypatch.setattr("headrace.serve.connection.read_words", fail)
    with pytest.raises(Broken, match="ZeroDivisionError: one"):
        async with running():
            pass


@looped
async def test_the_tokenizer_is_read_once_and_has_the_engine_s_template(tmp_path_factory, monkeypatch):
    folder, read = tmp_path_factory.mktemp("s"), []
    write_tokenizer(folder)
    monkeypatch.setattr(
        "headrace.serve.connection.read_words", lambda at: (read.append(at), read_words(at))[1]
    )
    front, host = Frontend(folder, Serve(workers=1)), Host(folder, 0, 1)
    try:
        host.say("loading the model", 0.0, str(folder))
        facts = msgspec.structs.replace(FACTS, tokenizer=str(folder), template="{{ messages }}")
        turns = iter([False])
        engine = Scripted(rows=4, blocks=10, block=16, step_seconds=0.0)
        await asyncio.to_thread(host.serve, engine, facts, lambda: next(turns, True))
        await front.until_ready()
        assert read == [str(folder)]
        assert front.intake.text_tokenizer.template_source == "{{ messages }}"
    finally:
        front.close()
        host.close()


@looped
async def test_what_an_engine_says_while_the_front_is_made_is_heard_when_it_is_whole(
    tmp_path_factory, monkeypatch
):
    """On a busy machine it may have begun to speak before the last line of the constructors."""
    folder, loop = tmp_path_factory.mktemp("s"), asyncio.get_running_loop()
    add, host = loop.add_reader, Host(folder, 0, 1)
    host.say("loading the model", 0.5)
    monkeypatch.setattr(
        loop, "add_reader", lambda fd, read: (add(fd, read), read.__self__._socket.poll(60_000))
    )
    front = Frontend(folder, Serve(workers=1))
    try:
        assert front.connection.loading.doing == "starting"
        await until(lambda: front.connection.loading.doing == "loading the model")
    finally:
        front.close()
        host.close()


@looped
async def test_a_text_that_cannot_be_made_costs_nobody_else_theirs(monkeypatch, caplog):
    async with running() as (front, _):
        requests = [ask([10, i], 3000 if i == 1 else 50) for i in range(3)]
        answers = [front.submit([request]) for request in requests]

        def fail(event: Event) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(answers[1].streams[0], "take", fail)
        assert await finish(answers[1]) == [([], "error")]
        assert isinstance(answers[1].fault, Broken)
        for i in (0, 2):
            assert await finish(answers[i]) == [(expected(requests[i]), "length")]
        await until(lambda: front.stats.running == 0)
        assert front.stats.generated < 3100, "the engine went on"
        assert "cannot go on" in caplog.text


@looped
async def test_draining_lets_requests_end_and_takes_no_new_ones():
    async with running(words=command(0.01)) as (front, _):
        short, long = front.submit([ask([10], 20)]), front.submit([ask([11], 3000)])
        draining = asyncio.create_task(front.drain(1000))
        await asyncio.sleep(0.01)
        assert not front.ready
        with pytest.raises(Unreachable, match="shutting down") as caught:
            front.submit([ask([12])])
        assert caught.value.status == 503
        assert await finish(short) == [(expected(ask([10], 20)), "length")]
        assert not draining.done()
        await front.drain(0)
        ((tokens, end),) = await finish(long)
        assert end == "error"
        assert isinstance(long.fault, Unreachable)
        assert tokens == expected(ask([11], len(tokens)))
        await draining
        assert not front.answers
        await asyncio.wait_for(front.drain(1000), 120)  # nothing runs


@looped
async def test_long_texts_are_worked_on_off_the_loop():
    async with running() as (front, _):
        here = threading.get_ident()
        assert await front.off_loop(10, threading.get_ident) == here
        assert await front.off_loop(LONG_TEXT, threading.get_ident) != here


@looped
async def test_long_texts_that_wait_are_refused_when_the_server_stops():
    gate = threading.Event()
    async with running() as (front, _):
        texts = [asyncio.create_task(front.off_loop(LONG_TEXT, gate.wait)) for _ in range(4)]
        await asyncio.sleep(0)
        await front.drain()
        front.close()
        gate.set()
        for text in texts:
            with pytest.raises(Unreachable, match="shutting down"):
                await text
        with pytest.raises(Unreachable, match="shutting down"):
            await front.off_loop(LONG_TEXT, gate.wait)


@looped
async def test_more_than_may_wait_is_refused_and_exactly_that():
    settings = config(schedule__rows=10, serve__queue=90)
    async with running(settings) as (front, _):
        answers, refused = [], []
        for i in range(500):
            try:
                answers.append(front.submit([ask([10, i], 8)]))
            except Busy as busy:
                refused.append(busy)
        assert (len(answers), len(refused)) == (100, 400)
        assert {busy.status for busy in refused} == {429}
        assert all(0 < busy.retry_after <= 600 for busy in refused)
        for answer in answers:
            assert (await finish(answer))[0][1] == "length"


@looped
async def test_prompts_that_wait_are_bounded_in_tokens():
    settings = config(schedule__rows=1, serve__queue_tokens=100)
    async with running(settings, command(0.01)) as (front, _):
        first = front.submit([ask([10] * 60, 50)])
        await first.next()
        answers = [front.submit([ask([10] * 300, 2)])]  # larger than the limit, but nobody else waits
        with pytest.raises(Busy, match="300 tokens and 100 are the most"):
            front.submit([ask([10], 2)])
        for answer in [first, *answers]:
            assert (await finish(answer))[0][1] == "length"
        await finish(front.submit([ask([10], 2)]))


@looped
async def test_who_comes_back_when_told_is_served():
    """80 at once where 20 have room: the others come back when told, until they have a place."""
    settings = config(schedule__rows=8, serve__queue=12)
    async with running(settings) as (front, _):
        told: list[int] = []

        async def client(i: int) -> None:
            while True:
                try:
                    answer = front.submit([ask([10, i], 20 + i % 20)])
                    break
                except Busy as busy:
                    told.append(i)
                    await asyncio.sleep(busy.retry_after)
            assert (await finish(answer))[0][1] == "length"

        await asyncio.gather(*(client(i) for i in range(80)))
        assert set(told) == set(range(20, 80))


@looped
async def test_a_failure_in_the_engine_is_told():
    async with running() as (front, _):
        answer = front.submit([ask([10], 1000)])
        await answer.next()
        (id,) = front._live
        front.take(Events(99, [Event(id, None, "error")]), 0.0)
        assert (await finish(answer))[0][1] == "error"
        assert isinstance(answer.fault, Broken)
        assert answer.fault.status == 500


def test_the_engine_is_started_before_anything_slow_is_imported():
    slow = "{'asyncio', 'fastapi', 'rich', 'torch', 'zmq'}"
    code = f"import sys, headrace.cli.main, headrace.cli.serve; sys.exit(str({slow} & set(sys.modules) or 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "0\n"
