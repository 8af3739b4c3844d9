"""Rounding to nearest with a search is the scheme's own rounding, or better."""

import pytest
import torch

from headrace.optimize.inputs import Inputs
from headrace.optimize.passes.rtn import Rtn
from headrace.quant.export import written
from headrace.quant.schemes import known
from tests.optimize.passes import made

NAMES = [name for name in known() if not name.startswith("q")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_packs_what_the_scheme_packs_and_no_worse(name: str, dtype: torch.dtype):
    scheme, weight = known()[name], made.correlated(24, 256, seed=1, stand_out=3.0)
    found = Rtn().pack(weight, scheme, Inputs.unknown(256), dtype)
    expected = scheme.pack(weight.to(dtype))
    ours, plain = ((scheme.unpack(packed) - weight).norm() for packed in (found, expected))
    assert ours <= plain * 1.0001
    written(scheme)


def test_inputs_decide_what_may_be_lost():
    weight = made.correlated(24, 256, seed=1, stand_out=3.0)
    inputs = made.inputs(made.correlated(96, 256, seed=2))
    scheme = known()["w4a16_row"]
    assert inputs.sample_TK is not None
    errors = [
        float(
            (
                inputs.sample_TK @ (scheme.unpack(Rtn(weighted=way).pack(weight, scheme, inputs)) - weight).T
            ).norm()
        )
        for way in (True, False)
    ]
    assert errors[0] < errors[1]


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch):
    weight, scheme = made.correlated(24, 256, seed=1), known()["w4a16_g64_asym"]
    whole = Rtn().pack(weight, scheme, Inputs.unknown(256))
    monkeypatch.setattr("headrace.optimize.pieces.pieces.__defaults__", (1000,))
    for key, tensor in Rtn().pack(weight, scheme, Inputs.unknown(256)).items():
        assert torch.equal(tensor, whole[key])


def test_one_step_takes_the_schemes_own_scales():
    weight, scheme = made.correlated(24, 256, seed=1), known()["w8a8"]
    found = Rtn(steps=1).pack(weight, scheme, Inputs.unknown(256))
    assert all(torch.equal(tensor, found[key]) for key, tensor in scheme.pack(weight).items())
