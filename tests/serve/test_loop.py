"""The engine process's loop: what it takes, what it tells whom, and in which order."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from headrace.base.errors import TooLong
from headrace.engine.request import Event, Request
from headrace.serve import wire
from headrace.serve.folder import Folder
from headrace.serve.link import Link
from headrace.serve.loop import Host
from headrace.serve.scripted import Scripted
from tests.looped import looped
from tests.serve.watched import FACTS


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
        self.heard: list[list[wire.FromEngine]] = [[] for _ in range(fronts)]
        self.links = [Link(folder, n, self._hear(n), lambda: None) for n in range(fronts)]
        self.host = Host(folder, 3, fronts)
        self.engine = Engine()

    def _hear(self, front: int) -> Callable[[int, wire.FromEngine], None]:
        def hear(number: int, message: wire.FromEngine) -> None:
            assert number == 3
            self.heard[front].append(message)

        return hear

    async def until(self, kind: type, front: int = 0) -> wire.FromEngine:
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


@asynccontextmanager
async def meeting(fronts: int = 1) -> AsyncIterator[Meeting]:
    """A host and so many fronts that have heard of it."""
    folder = Folder()
    made = Meeting(folder.path, fronts)
    try:
        made.host.say("loading", 0.5)
        for front in range(fronts):
            assert await made.until(wire.Loading, front) == wire.Loading("loading", 0.5)
        yield made
    finally:
        made.close()
        folder.remove()


@looped
async def test_who_leaves_takes_part_in_no_further_step():
    async with meeting() as m:
        m.links[0].send(3, wire.Add([ask("a"), ask("b")]))
        await m.turn()
        m.links[0].send(3, wire.Cancel(["a"]))
        await m.turn()
        assert m.engine.calls == ["add a", "add b", "step a b", "cancel a", "step b"]


@looped
async def test_one_message_per_step_and_front_with_its_own_events_only():
    async with meeting(fronts=2) as m:
        m.links[0].send(3, wire.Add([ask("a"), ask("b")]))
        m.links[1].send(3, wire.Add([ask("c")]))
        await m.turn(3)
        told = [[m for m in heard if isinstance(m, wire.Events)] for heard in m.heard]
        assert [[event.id for event in message.events] for message in told[0]] == [["a", "b"]] * 3
        assert [[event.id for event in message.events] for message in told[1]] == [["c"]] * 3
        assert [message.step for message in told[0]] == [1, 2, 3]


@looped
async def test_the_last_step_is_always_reported():
    async with meeting() as m:
        m.links[0].send(3, wire.Add([ask("a", 3), ask("b", 2)]))
        await m.turn(3)
        stats = [m.stats for m in m.heard[0] if isinstance(m, wire.Events)][-1]
        assert isinstance(stats, wire.Stats)
        assert (stats.running, stats.waiting, stats.steps, stats.generated) == (0, 0, 3, 5)


@looped
async def test_cancelling_the_last_one_is_reported_without_a_step():
    async with meeting() as m:
        m.links[0].send(3, wire.Add([ask("a")]))
        await m.turn()
        first = await m.until(wire.Events)
        assert isinstance(first, wire.Events)
        m.links[0].send(3, wire.Cancel(["a"]))
        await m.turn()
        last = await m.until(wire.Events)
        assert isinstance(last, wire.Events)
        assert last.stats is not None
        assert (last.stats.running, last.stats.steps, last.events) == (0, 1, [])


@looped
async def test_a_refusal_reaches_who_asked_and_nobody_else():
    async with meeting(fronts=2) as m:
        m.links[1].send(3, wire.Add([ask("a", prompt=(7, 7, 4)), ask("b")]))
        await m.turn()
        refused = await m.until(wire.Refusals, 1)
        assert isinstance(refused, wire.Refusals)
        assert [(r.id, r.kind, r.param) for r in refused.refusals] == [("a", "Refused", "prompt")]
        assert not [message for message in m.heard[0] if isinstance(message, wire.Refusals)]


@looped
async def test_hello_is_answered_and_a_new_boot_ends_what_the_old_one_had():
    async with meeting(fronts=2) as m:
        m.links[0].send(3, wire.Hello(1))
        m.links[1].send(3, wire.Hello(7))
        m.links[0].send(3, wire.Add([ask("a"), ask("b")]))
        m.links[1].send(3, wire.Add([ask("c")]))
        await m.turn()
        assert await m.until(wire.Ready) == wire.Ready(FACTS, 1)
        m.links[0].send(3, wire.Hello(1))
        await m.turn()
        m.links[0].send(3, wire.Hello(2))
        await m.turn()
        assert m.engine.calls[-4:] == ["step a b c", "cancel a", "cancel b", "step c"]


@looped
async def test_what_a_front_asks_is_handed_on_to_the_others():
    async with meeting(fronts=3) as m:
        question, answer = wire.Relay(0, -1, 5, ["rows"]), wire.Relay(2, 0, 5, [1, None])
        m.links[0].send(3, question)
        m.links[2].send(3, answer)
        await m.turn()
        assert await m.until(wire.Relay, 1) == question
        assert await m.until(wire.Relay, 0) == answer
        assert await m.until(wire.Relay, 2) == question


@looped
async def test_the_pulse_beats_during_a_step_and_says_what_is_in_it(monkeypatch):
    monkeypatch.setattr("headrace.serve.loop.BEAT", 0.05)
    async with meeting() as m:
        m.links[0].send(3, wire.Add([ask("a"), ask("b")]))
        await m.turn()
        step = m.engine.step

        def slow() -> list[Event]:
            time.sleep(0.6)
            return step()

        monkeypatch.setattr(m.engine, "step", slow)
        m.heard[0].clear()
        await m.turn()
        pulses = [m for m in m.heard[0] if isinstance(m, wire.Pulse) and m.busy]
        assert len(pulses) > 3
        assert {pulse.step for pulse in pulses} == {1}
        assert pulses[-1].rows == [("a", 3, 4), ("b", 3, 4)]


@looped
async def test_why_it_cannot_start_is_said_before_it_ends():
    async with meeting() as m:
        m.host.fail(TooLong("much too long", param="model.max_len", hint="less"))
        failed = await m.until(wire.Failed)
        assert isinstance(failed, wire.Failed)
        fault = failed.refusal.fault()
        assert isinstance(fault, TooLong)
        assert (fault.message, fault.param, fault.hint, fault.exit_code) == (
            "much too long", "model.max_len", "less", 2,
        )  # fmt: skip
