"""Plain torch that does not look at how many rows there are."""

import pytest
import torch
from torch.nn import functional

from headrace.kernels import fixed
from headrace.kernels.activation import gelu_mul, gelu_mul_ref, silu_mul, silu_mul_ref
from headrace.kernels.matmul import linear, linear_silu_mul, norm_linear


@pytest.mark.parametrize("shape", [(1, 48), (16, 48), (37, 48), (2, 5, 48), (0, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_the_product(shape: tuple[int, ...], bias: bool):
    x, weight = torch.randn(shape), torch.randn(20, 48)
    b = torch.randn(20) if bias else None
    torch.testing.assert_close(fixed.product(x, weight, b), functional.linear(x, weight, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(64, 48), (576, 192), (1000, 64)])
def test_rows_of_a_product_stand_alone(dtype: torch.dtype, n: int, k: int):
    weight = torch.randn(n, k).to(dtype)
    assert fixed.place_is_free(weight)
    x = torch.randn(70, k).to(dtype)
    together = fixed.product(x, weight)
    for a, b in ((0, 1), (5, 6), (3, 40), (69, 70)):
        assert torch.equal(fixed.product(x[a:b], weight), together[a:b])


@pytest.mark.parametrize("part", [slice(0, 1), slice(9, 16)])
def test_a_product_that_treats_some_rows_differently_is_found(monkeypatch: pytest.MonkeyPatch, part: slice):
    def sloppy(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = x @ weight.T
        out[part] *= 1 + 1e-6
        return out

    monkeypatch.setattr(functional, "linear", sloppy)
    assert not fixed.place_is_free(torch.randn(64, 48))


def test_a_product_that_looks_at_other_rows_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functional, "linear", lambda x, w: x @ w.T + 1e-6 * x.std(0).sum())
    assert not fixed.place_is_free(torch.randn(64, 48))


@pytest.mark.parametrize("size", [6, 48, 20000, 40002])
def test_whole_rows_are_handed_over(monkeypatch: pytest.MonkeyPatch, size: int):
    seen = []

    def noted(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.numel())
        return x[:, : size // 2] + 1

    x = torch.randn(9, size)
    assert torch.equal(fixed.whole_rows(noted, x), x[:, : size // 2] + 1)
    assert all(n == size or n <= fixed.SERIAL for n in seen)
    assert sum(seen) == x.numel()
    assert fixed.whole_rows(torch.tanh, torch.randn(2, 3, 5)).shape == (2, 3, 5)
    assert fixed.whole_rows(torch.tanh, torch.randn(0, 5)).shape == (0, 5)


@pytest.mark.parametrize(("function", "definition"), [(silu_mul, silu_mul_ref), (gelu_mul, gelu_mul_ref)])
def test_activations_of_a_row_stand_alone(function, definition):
    x = 3 * torch.randn(300, 2 * 77)
    together = function(x, deterministic=True)
    torch.testing.assert_close(together, definition(x))
    assert all(
        torch.equal(function(x[n : n + 1], deterministic=True), together[n : n + 1]) for n in range(300)
    )


def test_every_kind_of_layer_can_be_deterministic():
    x, weight, gain = torch.randn(20, 32), torch.randn(128, 32), torch.randn(32)
    for made in (
        lambda rows: linear(x[rows], weight, deterministic=True),
        lambda rows: linear_silu_mul(x[rows], weight, deterministic=True),
        lambda rows: norm_linear(x[rows], None, gain, 1e-6, 0.0, weight, gated=True, deterministic=True)[0],
    ):
        together = made(slice(None))
        assert all(torch.equal(made(slice(n, n + 1)), together[n : n + 1]) for n in range(20))
