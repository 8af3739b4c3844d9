"""GPTQ: weights are rounded column by column, and those not yet reached make up for the errors of those before.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", sections 3.1
to 3.3, with scales fixed beforehand, so that columns may be taken in another order than they lie in ("static groups").
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.optimize.factor import DAMPED, Factor, factored
from headrace.optimize.inputs import Inputs, Need
from headrace.optimize.passes import check_ranges
from headrace.optimize.passes.rtn import SEARCHED
from headrace.optimize.pieces import pieces, stacked
from headrace.quant.grid import Grid, Search, numbers
from headrace.quant.scheme import Scheme

BLOCK = 128
"""Columns whose errors are handed on to the rest at once, as one product (section 3.3, step 2)."""
AT_ONCE = 1 << 21
"""Elements of a weight that are rounded together: rows do not depend on each other."""


@dataclass(frozen=True)
class Gptq:
    """Needs calibration.

    damp      share of the Hessian's mean diagonal that is added to the diagonal: more of it trusts the texts less
    order     columns whose inputs are largest first; otherwise from left to right
    steps     scales tried for each group before anything is rounded; 1 takes the one that cuts off nothing
    least     the smallest scale tried, as a share of that one
    weighted  in that search errors count by the mean square of what the column is multiplied by
    """

    damp: float = 0.01
    order: bool = True
    steps: int = 40
    least: float = 0.5
    weighted: bool = True

    name: ClassVar[str] = "gptq"
    needs: ClassVar[frozenset[Need]] = frozenset({"hessian"})

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range."""
        check_ranges(self, **DAMPED, **SEARCHED)

    def fits(self, scheme: Scheme) -> str | None:
        """Scales must be known before columns are rounded, and belong to rows."""
        if scheme.grid is None:
            return f"gptq rounds to integers in groups or rows and to fp8 with a scale per row, not to {scheme.name}"
        return None

    @torch.no_grad()
    def pack(
        self, weight_NK: Tensor, scheme: Scheme, inputs: Inputs, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        grid = scheme.grid
        assert grid is not None, "fits was not asked"
        factor = factored(inputs, self.damp, self.order)
        importance_K = inputs.square_K if self.weighted else None
        search = Search(self.steps, self.least)
        parts = []
        for rows in pieces(weight_NK, AT_ONCE):
            found = [grid.scales(few, dtype, search, importance_K) for few in pieces(rows)]
            scale = torch.cat([each for each, _ in found])
            zero = torch.cat([each for _, each in found if each is not None]) if grid.zeros else None
            parts.append(scheme.of_values(rounded(rows, grid, scale, zero, factor), scale, zero))
        return stacked(parts)


def rounded(
    weight_NK: Tensor, grid: Grid, scale_NG: Tensor, zero_NG: Tensor | None, factor: Factor
) -> Tensor:
    """Stored values [N, K], nearest to the weight plus what errors made before ask of each column (see factor.py)."""
    order = factor.order
    lower_KK, diagonal = factor.lower_KK, factor.lower_KK.diagonal()
    scale_GN = scale_NG.float().T.contiguous()
    zero_GN = None if zero_NG is None else zero_NG.T.contiguous()
    columns = weight_NK.shape[1]
    group = (order // (grid.group or columns)).tolist()
    error_KN = weight_NK.T[order].contiguous()  # the weight at first; what is done becomes weight - rounded
    values_KN = torch.empty(error_KN.shape, dtype=grid.stored, device=weight_NK.device)
    for stop in range(columns, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        wanted = error_KN[start:stop].clone()
        if stop < columns:
            wanted.addmm_((lower_KK[stop:, start:stop] / diagonal[start:stop]).T, error_KN[stop:])
        share = lower_KK[start:stop, start:stop] / diagonal[start:stop]
        for i in range(stop - 1, start - 1, -1):
            at = i - start
            if i + 1 < stop:
                wanted[at].addmv_(error_KN[i + 1 : stop].T, share[at + 1 :, at])
            scale, zero = scale_GN[group[i]], None if zero_GN is None else zero_GN[group[i]]
            value = grid.nearest(wanted[at], scale, zero)
            values_KN[i] = value.to(grid.stored)
            error_KN[i].sub_(numbers(value, scale, zero))
    back = torch.empty_like(order)
    back[order] = torch.arange(columns, device=order.device)
    return values_KN.view(torch.int8)[back].T.contiguous().view(grid.stored)


PASS = Gptq
