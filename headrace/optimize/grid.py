"""The values that a scheme can store for a weight, with scales chosen so that rounding changes it least.

N rows, K columns, G groups of C columns that share a scale; whole rows are one group.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.rounding import cast
from headrace.quant.integers import Integers
from headrace.quant.scheme import Scheme
from headrace.quant.schemes.fp8 import E4M3, LARGEST, Fp8
from headrace.quant.schemes.int8 import Int8
from headrace.quant.schemes.w8a8 import Int8Product

PIECE = 1 << 19
"""Elements of a weight that are looked at once: a search holds a few copies of them."""
ON_GPU = 128
"""So many times as many where launches cost more than memory."""


@dataclass(frozen=True)
class Search:
    """How far scales may be reduced, cutting off the largest weights of a group, and in how many steps that is tried.

    With one step they are as the scheme has them: nothing is cut off.
    """

    steps: int
    least: float


@dataclass(frozen=True)
class Grid:
    """Multiples of a scale: whole numbers from low to high, or 8-bit floats, less a zero point where there is one.

    span    what a group's largest absolute number, or its range where there is a zero point, is divided by for a scale
    group   columns that share a scale; 0 for whole rows
    wide    scales are float32 whatever the model's dtype
    """

    low: float
    high: float
    span: float
    group: int = 0
    floats: bool = False
    zeros: bool = False
    wide: bool = False

    def scales(
        self, weight_NK: Tensor, dtype: torch.dtype, search: Search, importance_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scales [N, G] of `dtype` and zero points (float32 [N, G], or None).

        Of the scales tried, a group takes the one with the least sum of squared rounding errors, each times the
        importance of its column; of equal ones the largest.
        """
        groups = weight_NK.unflatten(1, (-1, self.group or weight_NK.shape[1]))
        if importance_K is not None:
            importance_K = importance_K.unflatten(0, (-1, groups.shape[2]))
        low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
        best = self._scale(low, high, 1.0, dtype)
        if search.steps < 2:
            return best
        least = self._error(groups, *best, importance_K)
        scale, zero = best
        # Up to where the largest number of either sign is just on the grid: symmetric scales of integers are smaller.
        most = self.span / self.high if not (self.zeros or self.floats) else 1.0
        for step in range(search.steps):
            share = most - (most - search.least) * step / (search.steps - 1)
            tried, tried_zero = self._scale(low, high, share, dtype)
            error = self._error(groups, tried, tried_zero, importance_K)
            better = error < least
            least = torch.where(better, error, least)
            scale = torch.where(better, tried, scale)
            if zero is not None and tried_zero is not None:
                zero = torch.where(better, tried_zero, zero)
        return scale, zero

    def nearest(self, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The stored value (in float32) whose number is nearest to x; all of one shape, or broadcast."""
        x = x / scale.float()
        if self.floats:
            return cast(x, self.high, E4M3).float()
        return (x if zero is None else x + zero).round_().clamp_(self.low, self.high)

    def number(self, value: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """What a stored value (in float32) stands for, float32."""
        return (value if zero is None else value - zero) * scale.float()

    def rounded(self, weight_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> Tensor:
        """The stored values of a weight, in the type that they are stored in: nearest to it by these scales."""
        columns = self.group or weight_NK.shape[1]
        zero_NK = None if zero_NG is None else zero_NG.repeat_interleave(columns, 1)
        return self.nearest(weight_NK, scale_NG.repeat_interleave(columns, 1), zero_NK).to(self.stored)

    @property
    def stored(self) -> torch.dtype:
        """The type that values are stored in."""
        return E4M3 if self.floats else torch.int8

    def _scale(
        self, low: Tensor, high: Tensor, share: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """For the range that is this share of what there is."""
        reach = high - low if self.zeros else torch.maximum(high, -low)
        scale = (reach * share / self.span).to(torch.float32 if self.wide else dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if not self.zeros:
            return scale, None
        return scale, (self.low - low * share / scale.float()).round_().clamp_(self.low, self.high)

    def _error(self, groups: Tensor, scale: Tensor, zero: Tensor | None, importance: Tensor | None) -> Tensor:
        """[N, G]."""
        scale = scale.unsqueeze(2)
        zero = zero if zero is None else zero.unsqueeze(2)
        error = self.number(self.nearest(groups, scale, zero), scale, zero).sub_(groups).square_()
        return (error if importance is None else error.mul_(importance)).sum(2)


def grid_of(scheme: Scheme) -> Grid | None:
    """The values of a scheme whose columns can be rounded one by one, with scales that are chosen before."""
    if isinstance(scheme, Integers):
        bits, spec = int(scheme.spec.bits), scheme.spec
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
        span = (high - low) / 2 if spec.symmetric else high - low
        return Grid(low, high, span, spec.group, zeros=not spec.symmetric)
    if isinstance(scheme, Int8Product):
        return Grid(-128, 127, 127.5)
    if isinstance(scheme, Int8):
        return Grid(-127, 127, 127, wide=True)
    if isinstance(scheme, Fp8):  # one scale for all rows is stored as one per row, and may as well differ
        return Grid(-LARGEST, LARGEST, LARGEST, floats=True)
    return None


def packed(scheme: Scheme, values_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> dict[str, Tensor]:
    """Stored values with their scales, as the scheme has them."""
    if isinstance(scheme, Integers):
        values_NK = scheme.store(values_NK)
    found = {"weight": values_NK, "scale": scale_NG.contiguous()}
    return found if zero_NG is None else {**found, "zero": zero_NG.to(torch.int8)}


def pieces(weight_NK: Tensor, elements: int = PIECE) -> Iterator[Tensor]:
    """Some rows after the other, about so many elements at a time."""
    elements *= ON_GPU if weight_NK.is_cuda else 1
    yield from weight_NK.split(max(1, elements // weight_NK.shape[1]))


def stacked(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Packed rows on top of each other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
