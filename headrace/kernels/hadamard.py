"""Turns rows by Hadamard matrices, so that no number stands out and few bits say them all well.

Ashkboos et al. 2024, QuaRot; a matrix of a power of two is repeated along the diagonal, as few sizes allow a whole one.
"""

import torch
from torch import Tensor

from headrace.kernels import fixed


def hadamard(size: int) -> Tensor:
    """The orthogonal matrix of signs [size, size] (Sylvester 1867), divided by sqrt(size). It is its own inverse."""
    made = torch.ones(1, 1, device="cpu")
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made * size**-0.5


def factors(size: int) -> tuple[Tensor, Tensor]:
    """What `mixed` takes to mix `size` numbers, a power of two: two matrices of about the same size."""
    near = 1 << (size.bit_length() // 2)
    return hadamard(size // near), hadamard(near)


def largest(columns: int, most: int) -> int:
    """The largest power of two up to `most`, itself one, that divides rows of so many columns."""
    return min(most, columns & -columns)


def turned(x: Tensor, matrix: Tensor, deterministic: bool = False) -> Tensor:
    """x [..., K] with each len(matrix) neighbours of a row multiplied by the matrix, float32.

    With `deterministic` a row's bits do not depend on how many there are, where `fixed.place_is_free` holds for it.
    """
    rows = x.float().reshape(-1, len(matrix))
    return (fixed.product(rows, matrix) if deterministic else rows @ matrix).view(x.shape)


def mixed(x: Tensor, far: Tensor, near: Tensor, deterministic: bool = False) -> Tensor:
    """x [..., K] turned, its own inverse: neighbours by `near`, then by `far` what is K / len(far) apart, float32.

    As good as one matrix for neighbours alone, in two thirds of the time: both products are large ones.
    """
    parts = turned(x, near, deterministic).unflatten(-1, (len(far), -1))
    if deterministic:
        return turned(parts.transpose(-1, -2), far, True).transpose(-1, -2).flatten(-2)
    return (far @ parts).flatten(-2)
