"""Plain torch whose result for a row is the same bits whatever other rows share the call.

A library chooses its algorithm, and where threads and vectors begin, by the size of what it is given. So products
are given blocks of one size, and functions of rows whole rows, few enough that no thread gets a part of one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 16
"""Rows of a product: as many bytes as a vector unit aligns to, even of one column in 32 bits."""
SERIAL = 1 << 14
"""Elements that torch never spreads over threads."""


def product(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias as [..., N], BLOCK rows at a time, the last ones filled up with zeros.

    Independent of the other rows where `place_is_free` holds for the weight.
    """
    x_TK = x.reshape(-1, x.shape[-1])
    out_TN = x_TK.new_empty(len(x_TK), len(weight_NK))
    for start in range(0, len(x_TK), BLOCK):
        rows = x_TK[start : start + BLOCK]
        block = x_TK.new_zeros(BLOCK, x_TK.shape[1])  # of its own: aligned as every other
        block[: len(rows)] = rows
        out_TN[start : start + BLOCK] = functional.linear(block, weight_NK, bias_N)[: len(rows)]
    return out_TN.view(*x.shape[:-1], len(weight_NK))


def place_is_free(weight_NK: Tensor) -> bool:
    """Whether this machine's product gives a row the same bits wherever in its block it is, whatever is beside it."""
    generator = torch.Generator(weight_NK.device).manual_seed(0)
    size = weight_NK.shape[1]
    x = torch.randn(BLOCK, size, generator=generator, device=weight_NK.device).to(weight_NK.dtype)
    row = x[BLOCK // 3]
    alike = functional.linear(row.expand(BLOCK, size).contiguous(), weight_NK)
    others = functional.linear(x, weight_NK)[BLOCK // 3]
    return bool((alike == alike[0]).all()) and torch.equal(others, alike[0])


def whole_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) for one that maps rows [..., N] to rows, by pieces of x that stay on one thread.

    At once on a GPU, where every element has a thread.
    """
    if x.is_cuda or not x.numel():
        return function(x)
    rows, threads = x.reshape(-1, x.shape[-1]), torch.get_num_threads()
    if x.shape[-1] > SERIAL:
        torch.set_num_threads(1)
    try:
        made = [function(part) for part in rows.split(max(1, SERIAL // x.shape[-1]))]
    finally:
        torch.set_num_threads(threads)
    return torch.cat(made).view(*x.shape[:-1], -1)
