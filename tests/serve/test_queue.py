"""Who may come in, and when there will be a place: forecast against what happens in a simulated engine."""

from itertools import count

import pytest

from headrace.serve import queue
from headrace.serve.queue import LONGEST, Load, Queue
from headrace.serve.wire import Stats


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(queue, "monotonic", lambda: now[0])
    return now


def learned(line: Queue, pace: float) -> None:
    for steps in range(2, 40):
        line.learn(
            Stats(
                running=line.here - line.waiting, waiting=line.waiting, steps=steps, busy_seconds=steps * pace
            )
        )


def test_places_are_counted():
    line = Queue(places=3, tokens=1000, rows=2, step_tokens=64)
    for _ in range(3):
        assert line.fits(1, 10)
        line.enter(10)
    assert not line.fits(1, 10)
    line.begin(10)
    assert not line.fits(1, 10)
    line.leave(True, 10, 1.0)
    assert line.fits(1, 10)
    line.leave(False, 10, None)
    line.leave(False, 10, None)
    assert (line.here, line.waiting, line.waiting_tokens) == (0, 0, 0)
    assert line.fits(100, 5000), "larger than any limit, but nobody is here"


def test_tokens_of_waiting_prompts_are_counted():
    line = Queue(places=100, tokens=100, rows=2, step_tokens=64)
    line.enter(60)
    assert line.fits(1, 40)
    assert not line.fits(1, 41)
    line.begin(60)
    assert line.fits(1, 500)


def test_what_other_fronts_sent_takes_places():
    line = Queue(places=10, tokens=1000, rows=4, step_tokens=64)
    line.enter(5)
    line.learn(Stats(running=4, waiting=5, steps=1))
    assert line.fits(1, 5)
    assert not line.fits(2, 5)
    line.forget_engine()
    assert line.fits(9, 5)


class Model:
    """An engine by arithmetic: `rows` at once, a token per step of `pace` seconds each."""

    def __init__(self, rows: int, pace: float, lengths: list[int]):
        self.pace = pace
        self.left = [[length, length] for length in lengths]  # tokens to be made, tokens in all
        self.rows = rows

    def loads(self) -> list[Load]:
        return [Load(n < self.rows, whole - left, whole, 5) for n, (left, whole) in enumerate(self.left)]

    def ends(self) -> list[float]:
        """Seconds from now to each end, in order."""
        left, found = [entry[0] for entry in self.left], []
        for step in count(1):
            if not left:
                return found
            left = [n - 1 if i < self.rows else n for i, n in enumerate(left)]
            found += [step * self.pace] * sum(n == 0 for n in left)
            left = [n for n in left if n]
        raise AssertionError


@pytest.mark.parametrize(("rows", "lengths"), [
    (8, [100] * 40),
    (8, [20 + 7 * i % 90 for i in range(60)]),
    (64, [200] * 64),
    (1, [50] * 10),
])  # fmt: skip
def test_the_times_told_hold_within_a_factor_of_two(rows: int, lengths: list[int], clock: list[float]):
    model = Model(rows, 0.05, lengths)
    line = Queue(places=len(lengths), tokens=10**6, rows=rows, step_tokens=64)
    for n in range(len(lengths)):
        line.enter(5)
        if n < rows:
            line.begin(5)
    learned(line, 0.05)
    told = [line.busy(1, model.loads()).retry_after for _ in range(len(lengths))]
    for said, true in zip(told, model.ends(), strict=True):
        assert true / 2 <= said <= true * 2 + 0.1
    further = [line.busy(1, model.loads()).retry_after for _ in range(len(lengths))]
    assert further == sorted(further)
    assert further[0] >= told[-1]
    assert further[-1] == pytest.approx(2 * told[-1], rel=0.3)


def test_answers_that_end_early_shorten_the_times(clock: list[float]):
    line = Queue(places=8, tokens=10**6, rows=8, step_tokens=64)
    for _ in range(200):
        line.enter(5)
        line.begin(5)
        line.leave(True, 5, 0.1)
    for _ in range(8):
        line.enter(5)
        line.begin(5)
    learned(line, 0.05)
    assert line.busy(1, [Load(True, 0, 1000, 5)] * 8).retry_after == pytest.approx(1000 * 0.1 * 0.05, rel=0.1)


def test_promises_lapse_when_their_time_has_come(clock: list[float]):
    line = Queue(places=4, tokens=10**6, rows=4, step_tokens=64, step_seconds=0.1)
    for _ in range(4):
        line.enter(5)
        line.begin(5)
    loads = [Load(True, 0, 10 * n, 5) for n in range(1, 5)]
    assert [line.busy(1, loads).retry_after for _ in range(3)] == pytest.approx([1, 2, 3])
    clock[0] += 2.5
    loads = [Load(True, 25, 10 * n, 5) for n in range(3, 7)]
    assert line.busy(1, loads).retry_after == pytest.approx(1.5, abs=0.1), "one promise is still good"


def test_where_memory_is_short_fewer_run_than_a_step_could_hold(clock: list[float]):
    line = Queue(places=100, tokens=10**6, rows=100, step_tokens=64)
    for n in range(100):
        line.enter(5)
        if n < 10:
            line.begin(5)
    learned(line, 0.05)
    loads = [Load(n < 10, 0, 100, 5) for n in range(100)]
    told = [line.busy(1, loads).retry_after for _ in range(100)]
    assert told[9] == pytest.approx(5, rel=0.1)
    assert told[99] == pytest.approx(50, rel=0.1)


def test_nobody_is_sent_away_for_ever(clock: list[float]):
    line = Queue(places=1, tokens=10**6, rows=1, step_tokens=64, step_seconds=10.0)
    line.enter(5)
    assert line.busy(1, [Load(True, 0, 10**6, 5)]).retry_after == LONGEST
    empty = Queue(places=1, tokens=10, rows=1, step_tokens=64)
    assert 0 < empty.busy(1, []).retry_after <= 2
