"""Who may come in, and when there will be a place: forecast against what happens in a simulated engine."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec
import pytest

from headrace.serve.places import Places
from headrace.serve.queue import LONGEST, Load, Queue
from headrace.serve.wire import Stats
from tests.serve.watched import FACTS


def made(most: int, tokens: int, rows: int, step_seconds: float = 0.0, places: Places | None = None) -> Queue:
    """A queue that has met an engine of so many rows."""
    line = Queue(places)
    facts = msgspec.structs.replace(FACTS, rows=rows, tokens=64, step_seconds=step_seconds)
    line.meet(facts, most - rows, tokens)
    return line


def learned(line: Queue, pace: float) -> None:
    here, waiting, _ = line.places.total
    for steps in range(2, 40):
        line.learn(Stats(running=here - waiting, waiting=waiting, steps=steps, busy_seconds=steps * pace))


def test_places_are_counted():
    line = made(most=3, tokens=1000, rows=2)
    for _ in range(3):
        assert line.take([10])
    assert not line.fits(1, 10)
    assert not line.take([10])
    line.begin(10)
    assert not line.fits(1, 10)
    line.leave(True, 10, 1.0)
    assert line.fits(1, 10)
    line.leave(False, 10, None)
    line.leave(False, 10, None)
    assert line.places.total == (0, 0, 0)
    assert line.fits(100, 5000), "larger than any limit, but nobody is here"


def test_tokens_of_waiting_prompts_are_counted():
    line = made(most=100, tokens=100, rows=2)
    assert line.take([60])
    assert line.fits(1, 40)
    assert not line.fits(1, 41)
    line.begin(60)
    assert line.fits(1, 500)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[[int], Queue]]:
    """Makes the queue of one of three fronts."""
    opened: list[Places] = []

    def make(number: int) -> Queue:
        opened.append(Places(tmp_path / "places", number, 3))
        return made(10, 100, 4, places=opened[-1])

    yield make
    for places in opened:
        places.close()


def test_limits_are_those_of_all_fronts_together(front: Callable[[int], Queue]):
    one, two, three = map(front, range(3))
    assert one.take([5] * 6)
    assert not two.take([5] * 5)
    assert two.take([5] * 3)
    assert three.take([5])
    assert [line.take([5]) for line in (one, two, three)] == [False] * 3
    assert three.places.total == (10, 10, 50)
    one.begin(5)
    assert two.places.total == (10, 9, 45)
    one.leave(True, 5, 1.0)
    assert two.take([55])
    three.leave(False, 5, None)
    assert not three.take([6]), "more tokens than may wait"
    assert three.take([0])


def test_a_front_that_is_started_again_holds_nothing(front: Callable[[int], Queue]):
    one, two = front(0), front(1)
    assert one.take([5] * 6)
    assert two.take([5] * 4)
    again = front(1)
    assert one.places.total == (6, 6, 30)
    assert again.take([5] * 4)
    assert not one.take([5])


def test_fronts_that_take_at_the_same_time_never_take_too_much(tmp_path: Path):
    """Four processes fight over 1000 places; between looking and taking, each lets the others run."""
    code = """
import sys, time
from pathlib import Path
from headrace.serve.places import Places
from headrace.serve.queue import Queue
line = Queue(Places(Path(sys.argv[1]), int(sys.argv[2]), 4))
line.most, line.tokens = 1000, 10**9
fits = line.fits
line.fits = lambda *words: (fits(*words), time.sleep(0))[0]
print("here", flush=True)
sys.stdin.read(1)
while line.take([1, 1, 1]):
    pass
while line.take([1]):
    pass
print(line.places.own.here)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "places")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    four = [subprocess.Popen([*words, str(front)], **pipes) for front in range(4)]
    for one in four:
        assert one.stdout.readline() == "here\n"
    for one in four:
        one.stdin.write("!")
        one.stdin.flush()
    assert sum(int(one.communicate(timeout=120)[0]) for one in four) == 1000


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
    line = made(most=len(lengths), tokens=10**6, rows=rows)
    for n in range(len(lengths)):
        assert line.take([5])
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


def test_fronts_that_share_an_engine_tell_times_that_hold_too(tmp_path: Path, clock: list[float]):
    """32 requests, every other one at the other front, of which 16 run; then 32 more come to them in turn."""
    model, both = Model(16, 0.05, [100] * 32), []
    for front in range(2):
        both.append(made(32, 10**6, 16, places=Places(tmp_path / "places", front, 2)))
    for n in range(32):
        assert both[n % 2].take([5])
        if n < 16:
            both[n % 2].begin(5)
    for line in both:
        learned(line, 0.05)
    loads = model.loads()
    told = [both[n % 2].busy(1, loads[n % 2 :: 2]).retry_after for n in range(32)]
    for line in both:
        line.places.close()
    assert told == pytest.approx(model.ends(), rel=0.2)


def test_answers_that_end_early_shorten_the_times(clock: list[float]):
    line = made(most=8, tokens=10**6, rows=8)
    for _ in range(200):
        assert line.take([5])
        line.begin(5)
        line.leave(True, 5, 0.1)
    for _ in range(8):
        assert line.take([5])
        line.begin(5)
    learned(line, 0.05)
    assert line.busy(1, [Load(True, 0, 1000, 5)] * 8).retry_after == pytest.approx(1000 * 0.1 * 0.05, rel=0.1)


def test_promises_lapse_when_their_time_has_come(clock: list[float]):
    line = made(most=4, tokens=10**6, rows=4, step_seconds=0.1)
    for _ in range(4):
        assert line.take([5])
        line.begin(5)
    loads = [Load(True, 0, 10 * n, 5) for n in range(1, 5)]
    assert [line.busy(1, loads).retry_after for _ in range(3)] == pytest.approx([1, 2, 3])
    clock[0] += 2.5
    loads = [Load(True, 25, 10 * n, 5) for n in range(3, 7)]
    assert line.busy(1, loads).retry_after == pytest.approx(1.5, abs=0.1), "one promise is still good"


def test_promises_are_few_however_many_ask(clock: list[float]):
    line = made(most=1, tokens=10**6, rows=1, step_seconds=0.1)
    assert line.take([5])
    told = [line.busy(1, [Load(True, 0, 100, 5)]).retry_after for _ in range(5000)]
    assert told == sorted(told)
    assert told[-1] == LONGEST
    assert len(line._promised) <= 1 + LONGEST / 10, "one ends every 10 s"


def test_where_memory_is_short_fewer_run_than_a_step_could_hold(clock: list[float]):
    line = made(most=100, tokens=10**6, rows=100)
    for n in range(100):
        assert line.take([5])
        if n < 10:
            line.begin(5)
    learned(line, 0.05)
    loads = [Load(n < 10, 0, 100, 5) for n in range(100)]
    told = [line.busy(1, loads).retry_after for _ in range(100)]
    assert told[9] == pytest.approx(5, rel=0.1)
    assert told[99] == pytest.approx(50, rel=0.1)


def test_nobody_is_sent_away_for_ever(clock: list[float]):
    line = made(most=1, tokens=10**6, rows=1, step_seconds=10.0)
    assert line.take([5])
    assert line.busy(1, [Load(True, 0, 10**6, 5)]).retry_after == LONGEST
    empty = made(most=1, tokens=10, rows=1)
    assert 0 < empty.busy(1, []).retry_after <= 2
