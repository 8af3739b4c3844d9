"""GPTQ is what the paper's algorithm says, done without inverting anything."""

import pytest
import torch
from torch import Tensor

from headrace.optimize.inputs import Inputs
from headrace.optimize.passes import gptq
from headrace.optimize.passes.gptq import Gptq
from headrace.optimize.passes.rtn import Rtn
from headrace.quant.grid import Search, numbers
from headrace.quant.schemes import known
from tests.optimize.passes import made

ROWS, COLUMNS = 16, 256
NAMES = [
    "w4a16",
    "w4a16_g64",
    "w4a16_g32_asym",
    "w4a16_row",
    "w8a16",
    "w8a8",
    "w8a8_static",
    "int8",
    "fp8",
    "fp8_a16",
]


def weight() -> Tensor:
    return made.correlated(ROWS, COLUMNS, seed=1, stand_out=3.0)


def inputs() -> Inputs:
    return made.inputs(made.correlated(512, COLUMNS, seed=2))


def book(w: Tensor, hessian: Tensor, name: str, damp: float, order: bool) -> Tensor:
    """Algorithm 1 of the paper, one column at a time in float64, with groups fixed beforehand: numbers [N, K]."""
    grid = known()[name].grid
    assert grid is not None
    scale, zero = grid.scales(w, torch.float32, Search(1, 1.0))
    chosen = torch.argsort(hessian.diagonal(), stable=True).flip(0) if order else torch.arange(COLUMNS)
    left, wide = w.double()[:, chosen], hessian.double()[chosen][:, chosen]
    wide = wide + damp * wide.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(wide), upper=True)
    out = torch.empty_like(w)
    for i, column in enumerate(chosen.tolist()):
        g = column // (grid.group or COLUMNS)
        own = scale[:, g], None if zero is None else zero[:, g]
        out[:, column] = numbers(grid.nearest(left[:, i].float(), *own), *own)
        error = (left[:, i] - out[:, column]) / upper[i, i]
        left[:, i:] -= error[:, None] * upper[i, i:]
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [True, False])
def test_it_is_the_papers_algorithm(name: str, order: bool):
    given = inputs()
    assert given.hessian_KK is not None
    expected = book(weight(), given.hessian_KK, name, 0.01, order)
    found = known()[name].unpack(Gptq(steps=1, order=order).pack(weight(), known()[name], given))
    # A number half-way between two may go either way, and takes some of what comes after it along.
    same = (found - expected).abs() < 1e-5
    assert float(same.float().mean()) > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_outputs_change_less_than_by_rounding_alone(name: str):
    scheme, given = known()[name], inputs()
    assert given.sample_TK is not None
    wanted = given.sample_TK @ weight().T
    plain, ours = (
        float((given.sample_TK @ scheme.unpack(way.pack(weight(), scheme, inputs())).T - wanted).norm())
        for way in (Rtn(), Gptq())
    )
    assert ours < 0.8 * plain


def test_rows_and_blocks_of_columns_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    scheme = known()["w4a16_g64"]
    whole = Gptq().pack(weight(), scheme, inputs())
    monkeypatch.setattr(gptq, "AT_ONCE", 1000)
    for key, tensor in Gptq().pack(weight(), scheme, inputs()).items():
        assert float((tensor == whole[key]).float().mean()) > 0.98  # sums of other lengths round otherwise
    monkeypatch.setattr(gptq, "BLOCK", 7)
    found = scheme.unpack(Gptq().pack(weight(), scheme, inputs()))
    assert float((found - scheme.unpack(whole)).abs().lt(1e-5).float().mean()) > 0.97


def test_columns_that_are_never_used_are_rounded_to_nearest():
    x = made.correlated(512, COLUMNS, seed=2)
    x[:, 10:20] = 0
    scheme = known()["w8a16"]
    found = scheme.unpack(Gptq(steps=1).pack(weight(), scheme, made.inputs(x)))
    expected = scheme.unpack(Rtn(steps=1).pack(weight(), scheme, made.inputs(x)))
    torch.testing.assert_close(found[:, 10:20], expected[:, 10:20])


def test_what_it_cannot_make():
    assert "nvfp4" in (Gptq().fits(known()["nvfp4"]) or "")
    assert Gptq().fits(known()["w4a16"]) is None
