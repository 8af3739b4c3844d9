"""A model in one scheme costs what the planner says of it; layers add up."""

from dataclasses import replace

import pytest

from headrace.base.errors import Refused
from headrace.plan.mixed import like, mixed
from tests.plan.options import option


@pytest.mark.parametrize(("scheme", "bits"), [("bf16", 16), ("fp8", 8), ("w4a16", 4.125), ("w8a16", 8)])
def test_all_layers_in_one_scheme_are_as_planned(scheme: str, bits: float):
    asked = option(work={"concurrency": 1})
    made, weights = mixed(asked), asked.anatomy.linear
    planned = replace(asked, scheme=scheme).forecast
    assert planned is not None
    own = "none" if scheme == "bf16" else scheme
    whole = made.rest + made.seconds(own, weights, int(weights * bits / 8))
    assert whole == pytest.approx(planned.tpot, rel=2e-3)
    halves = 2 * made.seconds(own, weights // 2, int(weights * bits / 16))
    assert made.rest + halves == pytest.approx(whole, rel=1e-6)


def test_schemes_go_by_how_their_names_begin():
    names = ("w4a16_g32_asym", "fp8_static", "w8a8", "none")
    assert list(map(like, names)) == ["w4a16", "fp8", "int8", "bf16"]
    with pytest.raises(Refused, match="how fast sparse24 is"):
        like("sparse24")


def test_what_cannot_be_foreseen():
    with pytest.raises(Refused, match="has experts"):
        mixed(option("mixtral-8x7b"))
    with pytest.raises(Refused, match="does not fit on 1 x l4"):
        mixed(option("llama-3.1-70b", "l4"))
