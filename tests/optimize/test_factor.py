"""A factor is the Cholesky factor of the damped Hessian with its columns in order, made in place."""

import pytest
import torch
from torch import Tensor

from headrace.base.errors import Broken
from headrace.optimize.factor import damped_cholesky, factored, permute
from headrace.optimize.inputs import Inputs


def hessian(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * size, size, generator=generator) * torch.rand(size, generator=generator)
    return x.T @ x


def inputs(hessian_KK: Tensor) -> Inputs:
    diagonal = hessian_KK.diagonal().clone()
    return Inputs(1, diagonal, diagonal, hessian_KK.clone())


@pytest.mark.parametrize("size", [3, 256, 600])
@pytest.mark.parametrize("sort", [True, False])
def test_it_is_the_factor_of_the_damped_hessian(size: int, sort: bool):
    whole = hessian(size)
    found = factored(inputs(whole), 0.01, sort)
    diagonal = whole.diagonal()
    if sort:
        assert bool((diagonal[found.order].diff() >= 0).all())
    else:
        assert found.order.tolist() == list(range(size))[::-1]
    expected = whole[found.order][:, found.order] + 0.01 * diagonal.mean() * torch.eye(size)
    lower = found.lower_KK.tril()
    torch.testing.assert_close(lower @ lower.T, expected, rtol=1e-4, atol=1e-3)


def test_it_is_made_once_and_takes_the_hessians_memory():
    given = inputs(hessian(40))
    memory = given.hessian_KK
    assert memory is not None
    found = factored(given, 0.01, True)
    assert found.lower_KK.data_ptr() == memory.data_ptr()
    assert given.hessian_KK is None
    assert factored(given, 0.01, True) is found
    with pytest.raises(AssertionError, match="two ways"):
        factored(given, 0.02, True)


@pytest.mark.parametrize("seed", range(4))
def test_permuting_in_place_is_permuting(seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix, order = torch.randn(301, 301, generator=generator), torch.randperm(301, generator=generator)
    expected = matrix[order][:, order]
    permute(matrix, order)
    assert torch.equal(matrix, expected)


def test_more_damping_is_taken_where_it_must_be():
    """The second attempt begins with the matrix as it was, though the first overwrote half of it."""
    matrix = torch.randn(600, 600, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    matrix.diagonal().fill_(8.0)  # far from definite with 1%, and with 10%
    lower = damped_cholesky(matrix.clone(), 0.01).tril()
    found = lower @ lower.T
    damping = (found - matrix).diagonal()
    assert 0.8 * 8 < float(damping.mean()) < 1000 * 8
    torch.testing.assert_close(damping, damping.mean().expand_as(damping), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.tril(-1), matrix.tril(-1), rtol=1e-3, atol=1e-3)


def test_inputs_that_were_never_there_cost_nothing():
    lower = damped_cholesky(torch.zeros(5, 5), 0.01).tril()
    assert torch.equal(lower, torch.eye(5))


def test_what_is_not_finite_is_said():
    with pytest.raises(Broken, match="not finite"):
        damped_cholesky(torch.full((3, 3), float("nan")), 0.01)
