"""The values that a scheme can store for a weight: multiples of scales, as they come or searched for.

N rows, K columns, G groups of C columns that share a scale; whole rows are one group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.rounding import cast

E4M3 = torch.float8_e4m3fn


def positive(scale: Tensor) -> Tensor:
    """Scales, with one where all is zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def numbers(values: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """What stored values (in float32, which are overwritten) stand for; scales and zero points broadcast."""
    if zero is not None:
        values.sub_(zero)
    return values.mul_(scale.float())


@dataclass(frozen=True)
class Search:
    """How far scales may be reduced, cutting off the largest weights of a group, and in how many steps that is tried.

    With one step they are as the scheme has them: nothing is cut off.
    """

    steps: int = 1
    least: float = 1.0


PLAIN = Search()


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
        self,
        weight_NK: Tensor,
        dtype: torch.dtype,
        search: Search = PLAIN,
        importance_K: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Scales [N, G] of `dtype` and zero points (float32 [N, G], or None) for a float32 weight.

        Of the scales tried, a group takes the one with the least sum of squared rounding errors, each times the
        importance of its column; of equal ones the largest. Zero is always on the grid, and scales are rounded to
        `dtype` before values are rounded by them.
        """
        groups = self.grouped(weight_NK)
        low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
        scale, zero = self._scale(low, high, 1.0, dtype)
        if search.steps < 2:
            return scale, zero
        if importance_K is not None:
            importance_K = importance_K.unflatten(0, (-1, groups.shape[2]))
        least = self._error(groups, scale, zero, importance_K)
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
        return (x if zero is None else x.add_(zero)).round_().clamp_(self.low, self.high)

    def rounded(self, weight_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> Tensor:
        """The stored values of a weight, in the type that they are stored in: nearest to it by these scales."""
        zero = zero_NG if zero_NG is None else zero_NG.unsqueeze(2)
        found_NGC = self.nearest(self.grouped(weight_NK), scale_NG.unsqueeze(2), zero)
        return found_NGC.to(self.stored).flatten(1)

    def grouped(self, weight_NK: Tensor) -> Tensor:
        """[N, K] as [N, G, C]."""
        return weight_NK.unflatten(1, (-1, self.group or weight_NK.shape[1]))

    @property
    def stored(self) -> torch.dtype:
        """The type that values are stored in."""
        return E4M3 if self.floats else torch.int8

    def _scale(
        self, low: Tensor, high: Tensor, share: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """For the range that is this share of what there is."""
        reach = high - low if self.zeros else torch.maximum(high, -low)
        scale = positive((reach * share / self.span).to(torch.float32 if self.wide else dtype))
        if not self.zeros:
            return scale, None
        return scale, (self.low - low * share / scale.float()).round_().clamp_(self.low, self.high)

    def _error(self, groups: Tensor, scale: Tensor, zero: Tensor | None, importance: Tensor | None) -> Tensor:
        """[N, G]."""
        scale = scale.unsqueeze(2)
        zero = zero if zero is None else zero.unsqueeze(2)
        error = numbers(self.nearest(groups, scale, zero), scale, zero).sub_(groups).square_()
        return (error if importance is None else error.mul_(importance)).sum(2)
