"""The engine process's loop: what it takes, what it tells whom, and in which order."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.base.errors import TooLong
from headrace.engine.request import Event, Request, SamplingParams
from headrace.serve.link import Link
from headrace.serve.loop import Host
from headrace.serve.scripted import Scripted
from headrace.serve.wire import (
    Add,
    Cancel,
    Events,
    Facts,
    Failed,
    FromEngine,
    Hello,
    Loading,
    Pulse,
    Ready,
    Refusals,
    Relay,
    Stats,
)

FACTS = Facts(
    model="m", served=("m",), path="m", created=1, max_len=100, vocab=259, eos_ids=frozenset({2}),
    defaults=SamplingParams(), kv_blocks=10, block=16, rows=4, tokens=64, kv_tokens=160, plan="", memory={},
    device="script", dtype="none", kv_dtype="none",
)  # fmt: skip


class Engine(Scripted):
    """Says what was asked of it, in order."""

    def __init__(self) -> None:
        super().__init__(rows=4, blocks=10, block=16, step_seconds=0.0)
        self.calls: list[str] = []

    def add(self, request: Request) -> None:
        self.calls.append(f"add {request.id}")
        super().add(request)

    def cancel(self, id: str) -> Event | None:
        self.calls.append(f"cancel {id}")
        return super().cancel(id)

    def step(self) -> list[Event]:
        events = super().step()
        self.calls.append("step " + " ".join(event.id for event in events))
        return events


class Meeting:
    """A host whose turns the test makes, and fronts that hear it."""

    def __init__(self, folder: Path, fronts: int):
        self.heard: list[list[FromEngine]] = [[] for _ in range(fronts)]
        self.links = [Link(folder, n, self._hear(n), lambda: None) for n in range(fronts)]
        self.host = Host(folder, 3, fronts)
        self.engine = Engine()

    def _hear(self, front: int) -> Callable[[int, FromEngine], None]:
        def hear(number: int, message: FromEngine) -> None:
            assert number == 3
            self.heard[front].append(message)

        return hear

    async def until(self, kind: type, front: int = 0) -> FromEngine:
        """The first message of a kind that a front hears from now on, taken away with all before it."""
        for _ in range(1000):
            for n, message in enumerate(self.heard[front]):
                if isinstance(message, kind):
                    del self.heard[front][: n + 1]
                    return message
            await asyncio.sleep(0.005)
        raise AssertionError(f"no {kind.__name__}")

    async def turn(self, turns: int = 1) -> None:
        """Let messages arrive, then have the host make turns."""
        await asyncio.sleep(0.05)
        left = iter([False] * turns)
        self.host.serve(self.engine, FACTS, until=lambda: next(left, True))
        await asyncio.sleep(0.05)

    def close(self) -> None:
        self.host.close()
        for link in self.links:
            link.close()


def ask(id: str, max_tokens: int = 5, prompt: tuple[int, ...] = (5, 6)) -> Request:
    return Request(id=id, prompt=prompt, max_tokens=max_tokens)


@pytest.fixture
def meet(tmp_path_factory: pytest.TempPathFactory):
    """Runs a test's body with a meeting of so many fronts."""

    def meet(work, fronts: int = 1) -> None:
        async def body() -> None:
            meeting = Meeting(tmp_path_factory.mktemp("s"), fronts)
            try:
                meeting.host.say("loading", 0.5)
                for front in range(fronts):
                    loading = await meeting.until(Loading, front)
                    assert loading == Loading("loading", 0.5)
                await work(meeting)
            finally:
                meeting.close()

        asyncio.run(asyncio.wait_for(body(), 60))

    return meet


def test_who_leaves_takes_part_in_no_further_step(meet):
    async def work(m: Meeting) -> None:
        m.links[0].send(3, Add([ask("a"), ask("b")]))
        await m.turn()
        m.links[0].send(3, Cancel(["a"]))
        await m.turn()
        assert m.engine.calls == ["add a", "add b", "step a b", "cancel a", "step b"]

    meet(work)


def test_one_message_per_step_and_front_with_its_own_events_only(meet):
    async def work(m: Meeting) -> None:
        m.links[0].send(3, Add([ask("a"), ask("b")]))
        m.links[1].send(3, Add([ask("c")]))
        await m.turn(3)
        told = [[m for m in heard if isinstance(m, Events)] for heard in m.heard]
        assert [[event.id for event in message.events] for message in told[0]] == [["a", "b"]] * 3
        assert [[event.id for event in message.events] for message in told[1]] == [["c"]] * 3
        assert [message.step for message in told[0]] == [1, 2, 3]

    meet(work, fronts=2)


def test_the_last_step_is_always_reported(meet):
    async def work(m: Meeting) -> None:
        m.links[0].send(3, Add([ask("a", 3), ask("b", 2)]))
        await m.turn(3)
        stats = [m.stats for m in m.heard[0] if isinstance(m, Events)][-1]
        assert isinstance(stats, Stats)
        assert (stats.running, stats.waiting, stats.steps, stats.generated) == (0, 0, 3, 5)

    meet(work)


def test_cancelling_the_last_one_is_reported_without_a_step(meet):
    async def work(m: Meeting) -> None:
        m.links[0].send(3, Add([ask("a")]))
        await m.turn()
        first = await m.until(Events)
        assert isinstance(first, Events)
        m.links[0].send(3, Cancel(["a"]))
        await m.turn()
        last = await m.until(Events)
        assert isinstance(last, Events)
        assert last.stats is not None
        assert (last.stats.running, last.stats.steps, last.events) == (0, 1, [])

    meet(work)


def test_a_refusal_reaches_who_asked_and_nobody_else(meet):
    async def work(m: Meeting) -> None:
        m.links[1].send(3, Add([ask("a", prompt=(7, 7, 4)), ask("b")]))
        await m.turn()
        refused = await m.until(Refusals, 1)
        assert isinstance(refused, Refusals)
        assert [(r.id, r.kind, r.param) for r in refused.refusals] == [("a", "Refused", "prompt")]
        assert not [message for message in m.heard[0] if isinstance(message, Refusals)]

    meet(work, fronts=2)


def test_hello_is_answered_and_a_new_boot_ends_what_the_old_one_had(meet):
    async def work(m: Meeting) -> None:
        m.links[0].send(3, Hello(1))
        m.links[1].send(3, Hello(7))
        m.links[0].send(3, Add([ask("a"), ask("b")]))
        m.links[1].send(3, Add([ask("c")]))
        await m.turn()
        assert await m.until(Ready) == Ready(FACTS, 1)
        m.links[0].send(3, Hello(1))
        await m.turn()
        m.links[0].send(3, Hello(2))
        await m.turn()
        assert m.engine.calls[-4:] == ["step a b c", "cancel a", "cancel b", "step c"]

    meet(work, fronts=2)


def test_what_a_front_asks_is_handed_on_to_the_others(meet):
    async def work(m: Meeting) -> None:
        question, answer = Relay(0, -1, 5, ["rows"]), Relay(2, 0, 5, [1, None])
        m.links[0].send(3, question)
        m.links[2].send(3, answer)
        await m.turn()
        assert await m.until(Relay, 1) == question
        assert await m.until(Relay, 0) == answer
        assert await m.until(Relay, 2) == question

    meet(work, fronts=3)


def test_the_pulse_beats_during_a_step_and_says_what_is_in_it(meet, monkeypatch):
    monkeypatch.setattr("headrace.serve.loop.BEAT", 0.05)

    async def work(m: Meeting) -> None:
        m.links[0].send(3, Add([ask("a"), ask("b")]))
        await m.turn()
        step = m.engine.step

        def slow() -> list[Event]:
            time.sleep(0.6)
            return step()

        monkeypatch.setattr(m.engine, "step", slow)
        m.heard[0].clear()
        await m.turn()
        pulses = [m for m in m.heard[0] if isinstance(m, Pulse) and m.busy]
        assert len(pulses) > 3
        assert {pulse.step for pulse in pulses} == {1}
        assert pulses[-1].rows == [("a", 3, 4), ("b", 3, 4)]

    meet(work)


def test_why_it_cannot_start_is_said_before_it_ends(meet):
    async def work(m: Meeting) -> None:
        m.host.fail(TooLong("much too long", param="model.max_len", hint="less"))
        failed = await m.until(Failed)
        assert isinstance(failed, Failed)
        fault = failed.refusal.fault()
        assert isinstance(fault, TooLong)
        assert (fault.message, fault.param, fault.hint, fault.exit_code) == (
            "much too long", "model.max_len", "less", 2,
        )  # fmt: skip

    meet(work)
