"""Lengths as flags say them."""

from random import Random
from statistics import mean, median

import pytest

from headrace.base.errors import Refused
from headrace.bench.serve.lengths import MOST, parse, whole


def drawn(text: str, count: int = 4000) -> list[float]:
    draw, random = parse(text, "tokens-in"), Random(1)
    return [draw(random) for _ in range(count)]


def test_each_form_draws_what_it_says():
    assert set(drawn("128")) == {128}
    ranged = drawn("64-256")
    assert min(ranged) >= 64
    assert max(ranged) <= 256
    assert mean(ranged) == pytest.approx(160, rel=0.03)
    assert mean(drawn("normal:100,10")) == pytest.approx(100, rel=0.02)
    assert median(drawn("lognormal:100,0.5")) == pytest.approx(100, rel=0.05)
    assert mean(drawn("exp:3")) == pytest.approx(3, rel=0.06)
    assert set(drawn("exp:0")) == {0}
    mixed = drawn("128:3,1024:1")
    assert set(mixed) == {128, 1024}
    assert mixed.count(128) / len(mixed) == pytest.approx(0.75, abs=0.03)


def test_a_whole_number_has_bounds():
    random = Random(1)
    assert whole(lambda _: -5.2, random) == 1
    assert whole(lambda _: 7.6, random) == 8
    assert whole(lambda _: 1e9, random) == MOST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-3",
        "5-2",
        "normal:1",
        "exp:1,2",
        "1:0",
        "1:x",
        "nan",
        "1e10",
        "uniform:1,2",
        "lognormal:9,500",
    ],
)
def test_what_is_no_length_is_refused(text: str):
    with pytest.raises(Refused, match="--tokens-in is"):
        parse(text, "tokens-in")
