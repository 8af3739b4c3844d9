"""Wanda: of every four weights the two are kept whose size times that of their inputs is largest.

Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1 and section 3 (N:M).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.optimize.inputs import Inputs, Need
from headrace.quant.scheme import Scheme
from headrace.quant.schemes.sparse24 import KEPT, OF, Sparse24


def only_sparse(name: str, scheme: Scheme) -> str | None:
    """Why a pass that prunes cannot make a scheme."""
    if isinstance(scheme, Sparse24):
        return None
    return f"{name} prunes to {KEPT} of {OF}, and {scheme.name} stores every weight; take sparse24 or rtn"


def keep(weight_NK: Tensor, score_NK: Tensor) -> Tensor:
    """The weight with only those of each four left whose score is largest; of equal ones the first."""
    fours = score_NK.unflatten(1, (-1, OF))
    order = fours.sort(dim=2, descending=True, stable=True).indices
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter_(2, order[..., :KEPT], True)
    return weight_NK * kept.flatten(1)


@dataclass(frozen=True)
class Wanda:
    """Has no options. Weights that are kept stay as they are."""

    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[Need]] = frozenset({"sample"})
    # Only sums are used; but without calibration, which this asks for, they are ones and prune by size alone.

    def fits(self, scheme: Scheme) -> str | None:
        """Why this pass cannot make that scheme; None where it can."""
        return only_sparse(self.name, scheme)

    @torch.no_grad()
    def pack(
        self, weight_NK: Tensor, scheme: Scheme, inputs: Inputs, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """float32 weight [N, K] pruned and packed. Eq. 1: the score is |w_ij| ||x_j||."""
        norm_K = inputs.square_K.to(weight_NK.device).sqrt()
        return scheme.pack(keep(weight_NK, weight_NK.abs() * norm_K).to(dtype))


PASS = Wanda
