"""Small steps run on as many threads as are faster, and it is noticed when that changes."""

from collections.abc import Iterator

import pytest
import torch

from headrace.engine import pace
from headrace.engine.pace import MANY, PERIOD, TRIES, Pace


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(pace_: Pace, clock: list[float], tokens: int, steps: int, one: float, every: float) -> list[int]:
    """Steps that take `one` seconds on one thread, `every` on all; on how many each ran."""
    used = []
    for _ in range(steps):
        pace_.begin(tokens)
        used.append(torch.get_num_threads())
        clock[0] += one if used[-1] == 1 else every
        pace_.end()
    return used


def test_the_faster_choice_is_taken_and_the_other_tried_again(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(pace, "perf_counter", lambda: clock[0])
    made = Pace(2)
    used = run(made, clock, 1, 2 * PERIOD, one=1.0, every=2.5)
    assert used[: 2 * TRIES] == [1] * TRIES + [2] * TRIES
    assert used[2 * TRIES :].count(2) == 2 * TRIES
    # The machine becomes quiet: from the next trial on all threads are used, but for the trials.
    used = run(made, clock, 1, 2 * PERIOD, one=1.0, every=0.6)
    assert PERIOD - TRIES <= used.count(1) <= PERIOD + TRIES


def test_large_steps_have_all_threads_and_sizes_are_apart(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(pace, "perf_counter", lambda: clock[0])
    made = Pace(2)
    assert set(run(made, clock, MANY, 10, one=1.0, every=2.0)) == {2}
    assert run(made, clock, 1, 20, one=1.0, every=2.0)[-1] == 1
    assert run(made, clock, 16, 20, one=2.0, every=1.0)[-1] == 2
