"""Wanda: two of every four, chosen by weight and input."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from headrace.optimize.passes.wanda import PASS, keep
from headrace.quant.schemes import scheme_named
from tests.optimize.passes import made

SPARSE = scheme_named("sparse24")


def test_the_size_of_inputs_decides():
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    x = torch.tensor([[1.0, 1.0, 10.0, 10.0, 1.0, 2.0, 3.0, 4.0]])
    found = SPARSE.unpack(PASS().pack(weight, SPARSE, made.inputs(x)))
    assert found.tolist() == [[0, 0, 2, 1, 0, 0, 1, 1]]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), fours=st.integers(1, 9), tie=st.booleans())
def test_two_of_four_are_kept_and_no_others_have_a_better_score(seed: int, rows: int, fours: int, tie: bool):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 8 * fours, generator=generator)
    score = torch.ones_like(weight) if tie else torch.rand(weight.shape, generator=generator)
    kept = keep(torch.ones_like(weight), score).bool().unflatten(1, (-1, 4))
    assert (kept.sum(2) == 2).all()
    fours_of = score.unflatten(1, (-1, 4))
    worst_kept = fours_of.masked_fill(~kept, torch.inf).amin(2)
    assert (fours_of.masked_fill(kept, -torch.inf).amax(2) <= worst_kept).all()
    assert torch.equal(keep(weight, score), weight * kept.flatten(1))


def test_other_schemes_are_refused_with_a_reason():
    assert PASS().fits(SPARSE) is None
    assert PASS().fits(scheme_named("sparse24_fp8")) is None
    assert "w4a16 stores every weight" in str(PASS().fits(scheme_named("w4a16")))
