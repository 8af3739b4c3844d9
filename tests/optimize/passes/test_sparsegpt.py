"""SparseGPT: what is dropped is made up for."""

import pytest
import torch

from headrace.optimize.factor import Factor, factored
from headrace.optimize.inputs import Inputs
from headrace.optimize.passes import sparsegpt, wanda
from headrace.optimize.passes.sparsegpt import PASS, loss, solve
from headrace.quant.schemes import scheme_named
from tests.optimize.passes import made

SCHEMES = ["sparse24", "sparse24_fp8"]


def weight(seed: int, rows: int = 48, columns: int = 64) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_better_than_wanda_which_is_better_than_size(name: str, seed: int):
    scheme, w = scheme_named(name), weight(seed)
    x = made.correlated(300, 64, seed)
    inputs = made.inputs(x)
    packed = [scheme.pack(w), wanda.PASS().pack(w, scheme, inputs), PASS().pack(w, scheme, inputs)]
    by_size, by_wanda, by_us = (made.loss(w, scheme.unpack(each), x) for each in packed)
    assert by_us < 0.6 * by_wanda
    assert by_wanda < by_size


@pytest.mark.parametrize("name", SCHEMES)
def test_no_row_is_worse_than_plain(name: str):
    """Also where there are fewer tokens than columns and inputs that never were."""
    scheme, w = scheme_named(name), weight(3, 40, 72)
    x = made.correlated(20, 72, 3)
    x[:, 8:20] = 0
    better = scheme.unpack(PASS().pack(w, scheme, made.inputs(x)))
    plain = scheme.unpack(scheme.pack(w))
    lost, before = (((w - each) @ x.T).norm(dim=1) for each in (better, plain))
    assert (lost <= before * 1.001).all()
    assert better.isfinite().all()


def factor_of(hessian: torch.Tensor, damp: float = 0.01) -> Factor:
    columns = len(hessian)
    return factored(Inputs(1, torch.ones(columns), torch.ones(columns), hessian.clone()), damp, sort=False)


def test_independent_inputs_need_no_correction():
    """With a diagonal Hessian what is kept stays, and is what wanda keeps."""
    w = weight(1, 8, 32)
    sizes = torch.linspace(1, 2, 32)
    expected = wanda.keep(w, w.abs() * sizes)
    torch.testing.assert_close(solve(w, factor_of(torch.diag(sizes.square()), 1e-6)), expected)


def test_the_mask_and_the_values_are_those_of_the_paper():
    """Algorithm 1 as it is written there, with the inverse of what is left of the Hessian at each column."""
    w = weight(4, 5, 16)
    x = made.correlated(60, 16, 4)
    hessian = x.T @ x
    damped = hessian.double() + 0.01 * hessian.diagonal().mean() * torch.eye(16)
    left, kept = w.double().clone(), torch.zeros(5, 16, dtype=torch.bool)
    for j in range(16):
        inverse = torch.linalg.inv(damped[j:, j:])
        if j % 4 == 0:
            diagonal = torch.stack([torch.linalg.inv(damped[i:, i:])[0, 0] for i in range(j, j + 4)])
            best = (left[:, j : j + 4].square() / diagonal).topk(2, dim=1).indices
            kept[:, j : j + 4].scatter_(1, best, True)
        error = left[:, j] * ~kept[:, j] / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0]
    torch.testing.assert_close(solve(w, factor_of(hessian)).double(), left * kept, atol=1e-4, rtol=1e-4)


def test_the_loss_of_a_row_is_what_its_products_lose():
    difference, x = weight(5, 6, 136), made.correlated(300, 136)
    found = loss(difference, factor_of(x.T @ x, 1e-6))
    torch.testing.assert_close(found, (difference @ x.T).square().sum(1), rtol=1e-3, atol=0)


def test_blocks_of_columns_do_not_show(monkeypatch: pytest.MonkeyPatch):
    """Carrying errors on to the rest at once is only faster."""
    x = made.correlated(200, 64)
    w, factor = weight(2, 16, 64), factor_of(x.T @ x)
    whole = solve(w, factor)
    monkeypatch.setattr(sparsegpt, "BLOCK", 16)
    torch.testing.assert_close(solve(w, factor), whole, atol=1e-4, rtol=1e-4)


def test_schemes_are_checked():
    assert "w8a8 stores every weight" in str(PASS().fits(scheme_named("w8a8")))
    assert PASS().needs == {"hessian"}
