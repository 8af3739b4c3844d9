"""When requests are due."""

from itertools import pairwise
from math import inf
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.base.errors import Refused
from headrace.bench.serve.arrivals import Load, Pattern, times

PATTERNS: list[Pattern] = ["poisson", "constant", "burst", "ramp"]


@given(st.sampled_from(PATTERNS), st.floats(0.5, 50), st.integers(0, 5), st.floats(0.5, 20))
def test_times_rise_stay_inside_and_are_the_same_for_a_seed(
    pattern: Pattern, rate: float, seed: int, length: float
):
    load = Load(rate=rate, pattern=pattern, duration=length)
    found = times(load, seed)
    assert found == times(load, seed)
    assert all(0 <= at < length for at in found)
    assert all(a <= b for a, b in pairwise(found))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_number_may_be_given_instead_of_the_time(pattern: Pattern):
    assert len(times(Load(rate=10, pattern=pattern, requests=37), 0)) == 37


def test_poisson_gaps_are_exponential():
    gaps = [b - a for a, b in pairwise(times(Load(rate=10, requests=5000), 3))]
    assert mean(gaps) == pytest.approx(0.1, rel=0.05)
    assert pstdev(gaps) == pytest.approx(0.1, rel=0.07)


@pytest.mark.parametrize(("burstiness", "spread"), [(0.25, 2.0), (4.0, 0.5)])
def test_burstiness_changes_the_spread_and_not_the_rate(burstiness: float, spread: float):
    gaps = [b - a for a, b in pairwise(times(Load(rate=10, requests=8000, burstiness=burstiness), 3))]
    assert mean(gaps) == pytest.approx(0.1, rel=0.08)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(spread, rel=0.1)


def test_constant_is_even_and_bursts_come_together():
    assert times(Load(rate=4, pattern="constant", requests=4), 0) == [0, 0.25, 0.5, 0.75]
    found = times(Load(rate=4, pattern="burst", burst=3, requests=7), 0)
    assert found == [0, 0, 0, 0.75, 0.75, 0.75, 1.5]


def test_a_ramp_grows_evenly():
    found = times(Load(rate=100, ramp_from=0, pattern="ramp", duration=40), 1)
    assert len(found) == pytest.approx(2000, rel=0.08)
    first = sum(at < 20 for at in found)
    assert first / len(found) == pytest.approx(0.25, abs=0.03), "a quarter comes in the first half"
    flat = times(Load(rate=50, ramp_from=50, pattern="ramp", duration=40), 1)
    assert len(flat) == pytest.approx(2000, rel=0.08)


def test_without_a_bound_all_come_at_once():
    assert times(Load(rate=inf, requests=3), 0) == [0, 0, 0]


@pytest.mark.parametrize(
    "load",
    [
        Load(rate=3),
        Load(rate=inf, duration=3.0),
        Load(rate=0, requests=3),
        Load(rate=1e9, duration=30.0),
        Load(requests=10**9),
    ],
)
def test_a_load_without_end_is_refused(load: Load):
    with pytest.raises(Refused):
        times(load, 0)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (Load(streams=8), "8 streams"),
        (Load(rate=2.5), "2.5/s"),
        (Load(rate=2.5, pattern="ramp"), "2.5/s ramp"),
        (Load(), "all at once"),
        (Load(rate=2.5, burstiness=0.3), "2.5/s burstiness 0.3"),
        (Load(replay=True), "trace"),
        (Load(replay=True, rate=2.0), "trace, 2 times as fast"),
    ],
)
def test_a_load_has_a_name(load: Load, name: str):
    assert load.name == name
