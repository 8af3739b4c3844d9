"""Hadamard matrices keep lengths, and rows turned twice are as they were."""

import pytest
import torch

from headrace.kernels.fixed import place_is_free
from headrace.kernels.hadamard import factors, hadamard, largest, mixed, turned


@pytest.mark.parametrize("size", [1, 8, 64])
def test_hadamard_is_orthogonal(size: int):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size))
    assert bool((matrix.abs() == size**-0.5).all())


@pytest.mark.parametrize(("columns", "expected"), [(1536, 128), (576, 64), (80, 16), (7, 1), (64, 64)])
def test_the_largest_that_divides(columns: int, expected: int):
    assert largest(columns, 128) == expected


def test_turning_spreads_what_stands_out_and_is_its_own_inverse():
    x = torch.zeros(3, 2, 32)
    x[:, 0, 5] = 8.0
    matrix = hadamard(16)
    found = turned(x, matrix)
    assert found.abs().amax() == 2.0
    assert not found[:, 0, 16:].any()
    torch.testing.assert_close(turned(found, matrix), x)


def test_a_row_has_its_bits_in_any_company():
    matrix = hadamard(32)
    both = factors(64)
    if not all(map(place_is_free, (matrix, *both))):
        pytest.skip("products of this machine depend on the place")
    x = torch.randn(37, 64)
    together, spread = turned(x, matrix, deterministic=True), mixed(x, *both, deterministic=True)
    for n in (0, 9, 36):
        assert torch.equal(turned(x[n : n + 1], matrix, deterministic=True)[0], together[n])
        assert torch.equal(mixed(x[n : n + 1], *both, deterministic=True)[0], spread[n])


@pytest.mark.parametrize("size", [1, 2, 8, 128])
def test_two_small_matrices_for_one_large(size: int):
    """Each number goes, in equal parts, to `size` others, and comes back."""
    far, near = factors(size)
    assert len(far) * len(near) == size
    x = torch.zeros(2, 3 * size)
    x[1, -1] = 1.0
    found = mixed(x, far, near)
    assert not found[0].any()
    assert int((found[1].abs() > size**-0.5 - 1e-6).sum()) == size
    torch.testing.assert_close(found[1].norm(), torch.tensor(1.0))
    torch.testing.assert_close(mixed(found, far, near), x)
