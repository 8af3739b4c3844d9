"""The page stands alone: well-formed, nothing from outside, no script, every name escaped, every number the plan's."""

from dataclasses import replace

import pytest

from headrace.plan.advice import advise
from headrace.plan.gpus import GPUS
from headrace.plan.options import Option
from headrace.plan.page import MOST, curves, page
from headrace.plan.search import cheapest
from tests.bench.pages import alone
from tests.plan.options import option

ASKED = {
    "plain": option(),
    "no room": option("llama-3.1-405b"),
    "prompts only": option(work={"tokens_out": 1}),
    "hybrid": option("qwen3-next-80b-a3b", gpus=2, scheme="fp8"),
    "cpu": option("qwen3-0.6b", "cpu", scheme="fp32", work={"concurrency": 4}),
    "free": option(price=0.0),
}


def made(asked: Option) -> str:
    return page(asked, advise(asked), [], "cost")


@pytest.mark.parametrize("name", ASKED)
def test_it_stands_alone(name: str):
    alone(made(ASKED[name]))


def test_numbers_are_those_of_the_plan():
    text, now = made(ASKED["plain"]), ASKED["plain"].forecast
    assert now is not None
    assert f"{now.output_per_s:,.0f} tok/s" in text
    assert f"{ASKED['plain'].memory.kv_tokens:,} tokens" in text
    assert text.count("<polyline") == 2 * len(curves(ASKED["plain"]))


def test_the_cheapest_are_listed():
    choices = cheapest(option(), [GPUS["h200"], GPUS["l40s"]], ["bf16", "fp8"], [], 10)
    text = page(option(), [], choices, "cost")
    assert "The cheapest that holds" in text
    assert "l40s fp8" in text


def test_names_are_escaped():
    evil = option()
    text = made(replace(evil, anatomy=replace(evil.anatomy, name="<b>&'", notes=("<i>",))))
    assert "<b>&'" not in text
    assert "<i>" not in text


def test_lines_are_of_configurations_that_fit():
    found = curves(option("llama-3.1-70b", "h100"))
    assert 1 <= len(found) <= MOST
    assert all(curve.points for curve in found)
    assert "h100 bf16" not in [curve.option.name for curve in found]
    for curve in found:
        counts = [n for n, _ in curve.points]
        assert counts == sorted(counts)
        assert all(point.rows == n for n, point in curve.points)
