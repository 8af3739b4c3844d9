"""SparseGPT: two of every four weights are dropped, and those not yet reached make up for it.

Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", algorithm 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels.rounding import cast
from headrace.optimize.factor import DAMPED, Factor, factored
from headrace.optimize.inputs import Inputs, Need
from headrace.optimize.passes import check_ranges
from headrace.optimize.passes.wanda import keep, only_sparse
from headrace.quant.scheme import Scheme
from headrace.quant.schemes.fp8 import E4M3, LARGEST
from headrace.quant.schemes.sparse24 import OF, SCHEMES

BLOCK = 128
"""Columns after which the errors of all of them are carried on to the rest at once. A multiple of four."""


@dataclass(frozen=True)
class SparseGpt:
    """damp   share of the mean diagonal that is added to the Hessian's diagonal, so that it can be inverted."""

    damp: float = 0.01

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[frozenset[Need]] = frozenset({"hessian"})

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range."""
        check_ranges(self, **DAMPED)

    def fits(self, scheme: Scheme) -> str | None:
        """Why this pass cannot make that scheme; None where it can."""
        return only_sparse(self.name, scheme)

    @torch.no_grad()
    def pack(
        self, weight_NK: Tensor, scheme: Scheme, inputs: Inputs, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """float32 weight [N, K] pruned and packed; rows that plain pruning serves better are pruned plainly."""
        factor = factored(inputs, self.damp, sort=False)  # from left to right: the four belong together
        plain = scheme.pack(weight_NK.to(dtype))
        packed = scheme.pack(solve(weight_NK, factor).to(dtype))
        if "scale" in packed:  # again, by each row's largest: what rounding does is made up for, too
            scale_N1 = packed["scale"]
            packed = _with_scale(solve(weight_NK, factor, scale_N1.float()), scale_N1)
        before_N, after_N = (loss(weight_NK - scheme.unpack(each), factor) for each in (plain, packed))
        worse_N1 = (after_N > before_N).unsqueeze(1)
        return {
            name: torch.where(worse_N1, plain[name].float(), tensor.float()).to(tensor.dtype)
            for name, tensor in packed.items()
        }


def solve(weight_NK: Tensor, factor: Factor, scale_N1: Tensor | None = None) -> Tensor:
    """The weight with two of every four columns zero and the rest changed so that products stay close.

    Columns are gone through as the factor has them, from its last row to the first. What those behind have lost, D,
    is best made up for by D_left L_left = -(D L)_left =: -E. With scales, values are rounded to 8-bit floats.
    """
    lower = factor.lower_KK
    wanted = weight_NK.float()[:, factor.order]
    lost = torch.zeros_like(wanted)
    for start in reversed(range(0, wanted.shape[1], BLOCK)):
        stop = min(start + BLOCK, wanted.shape[1])
        owed = lost[:, stop:] @ lower[stop:, start:stop]
        for first in reversed(range(start, stop, OF)):
            four = slice(first, first + OF)
            owed_N4 = owed[:, first - start : first - start + OF]
            sizes = lower[four, four]
            best = wanted[:, four] - torch.linalg.solve_triangular(sizes, owed_N4, upper=False, left=False)
            kept = keep(torch.ones_like(best), (best * sizes.diagonal()).square())
            for j in reversed(range(first, first + OF)):
                value = (wanted[:, j] - owed[:, j - start] / lower[j, j]) * kept[:, j - first]
                if scale_N1 is not None:
                    value = _rounded(value, scale_N1[:, 0])
                lost[:, j] = value - wanted[:, j]
                owed[:, : j - start].addr_(lost[:, j], lower[j, start:j])
    return torch.empty_like(wanted).index_copy_(1, factor.order, wanted + lost)


def loss(difference_NK: Tensor, factor: Factor) -> Tensor:
    """||d X||^2 of each row [N], with the damping that the factor has."""
    lower = factor.lower_KK
    ordered = difference_NK[:, factor.order]
    total = ordered.new_zeros(len(ordered))
    for start in range(0, len(lower), BLOCK):
        stop = start + BLOCK
        part = ordered[:, start:stop] @ lower[start:stop, start:stop].tril()
        total += part.addmm_(ordered[:, stop:], lower[stop:, start:stop]).square().sum(1)
    return total


def _rounded(value_N: Tensor, scale_N: Tensor) -> Tensor:
    return cast(value_N / scale_N, LARGEST, E4M3).float() * scale_N


def _with_scale(values_NK: Tensor, scale_N1: Tensor) -> dict[str, Tensor]:
    """Packed with scales that are given: `values` are multiples of 8-bit floats by them."""
    packed = SCHEMES["sparse24"].pack(values_NK)
    return {**packed, "weight": cast(packed["weight"] / scale_N1.float(), LARGEST, E4M3), "scale": scale_N1}


PASS = SparseGpt
