"""The engine process's loop: what it takes, what it tells whom, and in which order."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.base.errors import TooLong
from headrace.engine.request import Event, Request
from headrace.serve import wire
from headrace.serve.folder import Folder
from headrace.serve.link import Link
from headrace.serve.loop import Fronts, Host
from headrace.serve.scripted import Scripted
from tests.looped import looped, wait_for
from tests.serve.scripted import until
from tests.serve.watched import FACTS


class Engine(Scripted):
    """Says what was asked of it, in order."""

    def __init__(self) -> None:
        super().__init__(rows=4, blocks=10, block=16, step_seconds=0.0)
        self.calls: list[str] = []

    def add(self, request: Request) -> None:
        self.calls.append(f"add {request.id}")
        super().add(request)
        if request.id == "odd":
            raise ZeroDivisionError("half way")

    def cancel(self, id: str) -> Event | None:
        self.calls.append(f"cancel {id}")
        return super().cancel(id)

    def step(self) -> list[Event]:
        events = super().step()
        self.calls.append("step " + " ".join(event.id for event in events))
        return events


class Watched(Fronts):
    """The host's sockets; what comes is kept until the host looks, what goes is counted."""

    def __init__(self, folder: Path, number: int, fronts: int, letter: bytes = b"E"):
        super().__init__(folder, number, fronts, letter)
        self.boxes: list[deque[bytes]] = [deque() for _ in range(fronts)]
        self.sent = 0

    def arrived(self) -> int:
        """How many messages are here."""
        for front, box in enumerate(self.boxes):
            while (body := super().receive(front)) is not None:
                box.append(body)
        return sum(map(len, self.boxes))

    def wait(self) -> None:
        """Nothing more is to come."""

    def receive(self, front: int) -> bytes | None:
        return self.boxes[front].popleft() if self.boxes[front] else None

    def send(self, front: int, message: wire.FromEngine) -> None:
        self.sent += 1
        super().send(front, message)

    def send_all(self, message: wire.FromEngine) -> None:
        self.sent += len(self.boxes)
        super().send_all(message)


class Meeting:
    """A host whose turns the test makes, and fronts that hear it."""

    def __init__(self, folder: Path, fronts: int):
        self.heard: list[list[wire.FromEngine]] = [[] for _ in range(fronts)]
        self.links = [Link(folder, n, self._hear(n), lambda: None) for n in range(fronts)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("headrace.serve.loop.Fronts", Watched)
            self.host = Host(folder, 3, fronts)
        assert isinstance(self.host.fronts, Watched)
        self.fronts, self.engine = self.host.fronts, Engine()
        self._asked = self._came = 0

    def send(self, front: int, message: wire.ToEngine) -> None:
        """From a front to the host."""
        self._asked += 1
        self.links[front].send(3, message)

    def _hear(self, front: int) -> Callable[[int, wire.FromEngine], None]:
        def hear(number: int, message: wire.FromEngine) -> None:
            assert number == 3
            self._came += not isinstance(message, wire.Pulse)
            self.heard[front].append(message)

        return hear

    async def until(self, kind: type, front: int = 0) -> wire.FromEngine:
        """The first message of a kind that a front hears from now on, taken away with all before it."""
        await until(lambda: any(isinstance(message, kind) for message in self.heard[front]))
        n = next(n for n, message in enumerate(self.heard[front]) if isinstance(message, kind))
        message = self.heard[front][n]
        del self.heard[front][: n + 1]
        return message

    async def turn(self, turns: int = 1) -> None:
        """Let messages arrive, have the host make turns, and let arrive what it says."""
        await until(lambda: self.fronts.arrived() == self._asked)
        self._asked = 0
        left = iter([False] * turns)
        self.host.serve(self.engine, FACTS, until=lambda: next(left, True))
        await until(lambda: self._came == self.fronts.sent)

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
        m.send(0, wire.Add([ask("a"), ask("b")]))
        await m.turn()
        m.send(0, wire.Cancel(["a"]))
        await m.turn()
        assert m.engine.calls == ["add a", "add b", "step a b", "cancel a", "step b"]


@looped
async def test_one_message_per_step_and_front_with_its_own_events_only():
    async with meeting(fronts=2) as m:
        m.send(0, wire.Add([ask("a"), ask("b")]))
        m.send(1, wire.Add([ask("c")]))
        await m.turn(3)
        told = [[m for m in heard if isinstance(m, wire.Events)] for heard in m.heard]
        assert [[event.id for event in message.events] for message in told[0]] == [["a", "b"]] * 3
        assert [[event.id for event in message.events] for message in told[1]] == [["c"]] * 3
        assert [message.step for message in told[0]] == [1, 2, 3]


@looped
async def test_the_last_step_is_always_reported():
    async with meeting() as m:
        m.send(0, wire.Add([ask("a", 3), ask("b", 2)]))
        await m.turn(3)
        stats = [m.stats for m in m.heard[0] if isinstance(m, wire.Events)][-1]
        assert isinstance(stats, wire.Stats)
        assert (stats.running, stats.waiting, stats.steps, stats.generated) == (0, 0, 3, 5)


@looped
async def test_cancelling_the_last_one_is_reported_without_a_step():
    async with meeting() as m:
        m.send(0, wire.Add([ask("a")]))
        await m.turn()
        first = await m.until(wire.Events)
        assert isinstance(first, wire.Events)
        m.send(0, wire.Cancel(["a"]))
        await m.turn()
        last = await m.until(wire.Events)
        assert isinstance(last, wire.Events)
        assert last.stats is not None
        assert (last.stats.running, last.stats.steps, last.events) == (0, 1, [])


@looped
async def test_a_refusal_reaches_who_asked_and_nobody_else():
    async with meeting(fronts=2) as m:
        m.send(1, wire.Add([ask("a", prompt=(7, 7, 4)), ask("b")]))
        await m.turn()
        refused = await m.until(wire.Refusals, 1)
        assert isinstance(refused, wire.Refusals)
        assert [(r.id, r.kind, r.param) for r in refused.refusals] == [("a", "Refused", "prompt")]
        assert not [message for message in m.heard[0] if isinstance(message, wire.Refusals)]


@looped
async def test_what_breaks_on_its_way_in_ends_alone():
    async with meeting() as m:
        m.send(0, wire.Add([ask("a"), ask("odd"), ask("b")]))
        await m.turn()
        refused = await m.until(wire.Refusals)
        assert isinstance(refused, wire.Refusals)
        assert [(r.id, r.kind, r.fault().status) for r in refused.refusals] == [("odd", "Broken", 500)]
        assert m.engine.calls == ["add a", "add odd", "cancel odd", "add b", "step a b"]


@looped
async def test_hello_is_answered_and_a_new_boot_ends_what_the_old_one_had():
    async with meeting(fronts=2) as m:
        m.send(0, wire.Hello(1))
        m.send(1, wire.Hello(7))
        m.send(0, wire.Add([ask("a"), ask("b")]))
        m.send(1, wire.Add([ask("c")]))
        await m.turn()
        assert await m.until(wire.Ready) == wire.Ready(FACTS, 1)
        m.send(0, wire.Hello(1))
        await m.turn()
        m.send(0, wire.Hello(2))
        await m.turn()
        assert m.engine.calls[-4:] == ["step a b c", "cancel a", "cancel b", "step c"]


@looped
async def test_what_a_front_asks_is_handed_on_to_the_others():
    async with meeting(fronts=3) as m:
        question, answer = wire.Relay(0, -1, 5, ["rows"]), wire.Relay(2, 0, 5, [1, None])
        m.send(0, question)
        m.send(2, answer)
        await m.turn()
        assert await m.until(wire.Relay, 1) == question
        assert await m.until(wire.Relay, 0) == answer
        assert await m.until(wire.Relay, 2) == question


@looped
async def test_the_pulse_beats_during_a_step_and_says_what_is_in_it(monkeypatch):
    monkeypatch.setattr("headrace.serve.loop.BEAT", 0.05)
    beats, beat = [], Fronts.send_all
    monkeypatch.setattr(Fronts, "send_all", lambda *words: (beat(*words), beats.append(words[1])))
    async with meeting() as m:
        m.send(0, wire.Add([ask("a"), ask("b")]))
        await m.turn()
        step = m.engine.step

        def slow() -> list[Event]:
            wait_for(lambda: sum(isinstance(one, wire.Pulse) and one.busy for one in beats) > 3)
            return step()

        monkeypatch.setattr(m.engine, "step", slow)
        beats.clear()
        await m.turn()
        pulses = [one for one in beats if isinstance(one, wire.Pulse) and one.busy]
        await until(lambda: pulses[-1] in m.heard[0])
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
