"""Round to nearest, by scales that may cut off a group's largest weights where that costs least.

The search is that of Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient Inference", section
3: the range that minimizes the mean squared error; with inputs known, each error counts by how large its column's are.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.optimize.inputs import Inputs, Need
from headrace.optimize.passes import check_ranges
from headrace.optimize.pieces import pieces, stacked
from headrace.quant.grid import Search
from headrace.quant.scheme import Scheme

SEARCHED = {"steps": (1, 1000), "least": (0.1, 1)}
"""Least and largest values of the options that say how scales are searched for."""


@dataclass(frozen=True)
class Rtn:
    """Each weight by itself.

    steps     scales tried for each group; 1 takes the one that cuts off nothing
    least     the smallest scale tried, as a share of that one
    weighted  errors count by the mean square of what the column is multiplied by; nothing changes without calibration
    """

    steps: int = 40
    least: float = 0.5
    weighted: bool = True

    name: ClassVar[str] = "rtn"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range."""
        check_ranges(self, **SEARCHED)

    def fits(self, scheme: Scheme) -> str | None:
        """Every scheme can be rounded to; those without a grid, by their own `pack`."""
        return None

    @torch.no_grad()
    def pack(
        self, weight_NK: Tensor, scheme: Scheme, inputs: Inputs, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        grid = scheme.grid
        if grid is None:
            return scheme.pack(weight_NK.to(dtype))
        importance_K = inputs.square_K if self.weighted else None
        parts = []
        for rows in pieces(weight_NK):
            scale, zero = grid.scales(rows, dtype, Search(self.steps, self.least), importance_K)
            parts.append(scheme.of_values(grid.rounded(rows, scale, zero), scale, zero))
        return stacked(parts)


PASS = Rtn
