"""The search for the edge, on servers that are formulas."""

from collections.abc import Callable

import pytest

from headrace.base.errors import Refused
from headrace.bench.serve import campaign
from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.campaign import Campaign, Level
from headrace.bench.serve.connection import Target
from headrace.bench.serve.data import Synthetic
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.search import CLOSE, Limit, judge, read_limits, search, sweep
from headrace.bench.serve.selftest import stub
from tests.bench.serve.made import level, samples

TTFT = read_limits("ttft_p99<0.5")


def queue(capacity: float) -> Callable[[Load], Level]:
    """A server whose TTFT grows as a queue's does; beyond its capacity it is hopeless."""

    def play(load: Load) -> Level:
        rate = load.rate if load.streams is None else min(load.streams * 2.0, capacity)
        wait = 0.05 if load.streams is not None else 0.05 / max(1 - rate / capacity, 0.001)
        return level(load, samples(count=600, rate=rate, ttft=wait))

    return play


@pytest.mark.parametrize("capacity", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("begin", [0.3, 1.0, 100.0])
def test_the_edge_is_found_wherever_it_is(capacity: float, begin: float):
    *_, found = search(TTFT, begin, 10.0, Load(duration=10.0), queue(capacity))
    # 0.05 * 1.2 / (1 - r / c) = 0.5 at the slowest request
    edge = capacity * (1 - 0.06 / 0.5)
    assert found.holds <= edge * 1.02
    assert found.fails
    assert found.fails >= edge * 0.98
    assert found.fails / found.holds <= CLOSE
    assert len(found.steps) <= 14


@pytest.mark.slow
def test_the_edge_of_a_server_that_saturates(monkeypatch: pytest.MonkeyPatch):
    """Ten slots, and five ticks of 20 ms for an answer: 100 requests per second and no more."""
    monkeypatch.setattr(campaign, "LATE", 1.0)  # whether this machine is busy is not what is asked here
    with stub("--interval", "0.02", "--slots", "10") as url:
        made = Campaign(Target.of(url, {}), Ask(model="stub"), Synthetic(tokens_in="5", tokens_out="5"))
        load = Load(pattern="constant", duration=2.0)
        *_, found = search(read_limits("ttft_p90<0.2"), 40.0, 2.0, load, made.level)
    # At r requests per second, those who come in the last tenth wait for 2 s * 0.9 * (r / 100 - 1).
    assert found.fails
    assert 80 < found.holds < found.fails < 130
    assert found.fails / found.holds <= CLOSE


def test_what_never_holds_is_given_up():
    *_, found = search(read_limits("ttft_p99<0.01"), 1.0, 10.0, Load(), queue(40.0))
    assert found.holds == 0


def test_unclear_levels_are_played_longer_and_then_count_as_failed():
    durations: list[float] = []

    def play(load: Load) -> Level:
        assert load.duration is not None
        durations.append(load.duration)
        few = samples(count=30, rate=1.0, ttft=0.4)
        few[3].first = few[3].scheduled + 0.6  # the interval of p99 reaches up to the slowest
        return level(load, few)

    found = next(search(TTFT, 100.0, 10.0, Load(), play))
    assert durations == [10.0, 20.0]
    assert found.steps == [(100.0, "unclear")]
    assert found.fails == 100.0


def test_a_client_that_cannot_keep_up_ends_the_search():
    rates: list[float] = []

    def play(load: Load) -> Level:
        rates.append(load.rate)
        late = 0.05 if load.rate > 3 else 0.0
        return level(load, samples(count=600, rate=load.rate, lag=late))

    *_, found = search(TTFT, 1.0, 10.0, Load(), play)
    assert rates == [1.0, 2.0, 4.0, 4.0]
    assert (found.holds, found.fails) == (2.0, None)
    assert found.steps[-1] == (4.0, "unclear")


@pytest.mark.parametrize("found", [[], [Sample(0.0, 0.0, ended=1.0, reason="connection: refused")]])
def test_a_server_that_is_gone_and_a_rate_of_nothing_end_the_search(found: list[Sample]):
    played: list[Load] = []

    def play(load: Load) -> Level:
        played.append(load)
        return level(load, samples(count=600, rate=load.rate) if load.rate < 3 else found)

    *_, last = search(TTFT, 1.0, 10.0, Load(), play)
    assert [load.rate for load in played] == [1.0, 2.0, 4.0]
    assert (last.holds, last.fails) == (2.0, None)
    assert last.steps[-1] == (4.0, "unclear")


def test_few_good_answers_among_many_failures_do_not_hold():
    bad = [Sample(n, n, ended=n, outcome="refused") for n in range(20)]
    assert judge(TTFT, level(found=samples(100))) == "holds"
    assert judge(TTFT, level(found=[*samples(100), *bad])) == "fails"
    assert judge(TTFT, level(found=[])) == "fails"


def test_limits_are_read():
    expected = [Limit("ttft_p99", False, 0.5), Limit("tpot_mean", False, 0.05), Limit("attained", True, 0.99)]
    assert read_limits("ttft_p99<0.5, tpot_mean <= 5e-2,attained>0.99") == expected


@pytest.mark.parametrize(
    "text", ["", "ttft<1", "ttft_p42<1", "ttft_p99=1", "ttft_p99<x", "foo<1", "tpot_p99<1,"]
)
def test_what_is_no_limit_is_refused(text: str):
    with pytest.raises(Refused, match="no limit"):
        read_limits(text)


def test_floors_are_judged_the_other_way_round():
    (limit,) = read_limits("output_per_second>50")
    assert limit.judge(level().whole) == "holds"
    assert limit._replace(bound=1e6).judge(level().whole) == "fails"


def test_a_sweep_goes_from_idle_to_beyond_saturation():
    levels = list(sweep(10.0, Load(), queue(40.0)))
    streams = [one.load.streams for one in levels if one.load.streams is not None]
    rates = [one.load.rate for one in levels if one.load.streams is None]
    assert streams[:3] == [1, 4, 16]
    assert rates == sorted(rates)
    assert rates[-1] > 39
    assert rates[0] < 6


def test_a_sweep_of_a_dead_server_ends():
    def play(load: Load) -> Level:
        return level(load, [Sample(0.0, 0.0, ended=1.0, outcome="error", reason="connection: refused")])

    assert len(list(sweep(1.0, Load(), play))) == 2
