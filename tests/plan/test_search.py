"""The cheapest configuration holds what was asked, and nothing cheaper that was tried does."""

from dataclasses import replace

import pytest

from headrace.base.errors import Refused
from headrace.plan.gpus import GPUS
from headrace.plan.search import Choice, cheapest
from headrace.plan.workload import Limit, holds, limits
from tests.plan.options import option

SCHEMES = ["bf16", "fp8", "w4a16"]
CARDS = [gpu for gpu in GPUS.values() if gpu.kind == "gpu"]
CHAT = limits("ttft<0.5,tpot<0.03")


def search(
    *names: str, qps: float | None = None, found: list[Limit] = CHAT, model: str = "llama-3.1-8b"
) -> list[Choice]:
    cards = [GPUS[name] for name in names] or CARDS
    return cheapest(option(model), cards, SCHEMES, found, qps)


def test_every_choice_holds_and_is_sorted_by_cost():
    found = search()
    assert len(found) > 20
    assert [c.cost for c in found] == sorted(c.cost for c in found)
    for choice in found:
        assert holds(CHAT, choice.forecast.measure)
        assert choice.forecast.rows == choice.option.work.concurrency


def test_one_more_at_once_does_not_hold():
    for choice in search("h200"):
        work = choice.option.work
        more = replace(choice.option, work=work._replace(concurrency=work.concurrency + 1)).forecast
        assert more is None or not holds(CHAT, more.measure) or more.rows <= work.concurrency


def test_a_rate_is_met_by_replicas():
    for choice in search("l4", "h200", qps=40):
        assert choice.replicas * choice.forecast.requests_per_s >= 40 * 0.999
        assert holds(CHAT, choice.forecast.measure)
        assert choice.per_hour == pytest.approx(choice.replicas * choice.option.per_hour)
    one, ten = (search("h200", qps=qps)[0].per_hour for qps in (1, 200))
    assert ten > one


def test_stricter_is_never_cheaper():
    loose, strict = (search(found=limits(f"tpot<{limit}"))[0].cost for limit in (0.05, 0.006))
    assert strict > loose


def test_without_limits_a_rate_is_enough():
    assert search(qps=5, found=[])[0].qps == 5


def test_a_large_model_needs_several():
    best = search("h100", model="llama-3.1-70b")
    assert {c.option.gpus for c in best if c.option.scheme == "bf16"} == {2, 4, 8}
    assert {c.option.gpus for c in best if c.option.scheme == "w4a16"} == {1, 2, 4, 8}


def test_nothing_holds():
    with pytest.raises(Refused, match="nearest is") as fault:
        search(found=limits("tpot<0.00001"))
    assert "times as much" in fault.value.hint
    with pytest.raises(Refused, match="fits on none"):
        search("l4", model="deepseek-v3")
