"""What integer schemes share: scales, zero points, rounding, for groups of columns or whole rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.quant.scheme import Axes, Packed, Scheme

TINY = torch.finfo(torch.float32).tiny


def grid(weight_NGC: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scales [N, G] in `dtype` and zero points (int8 [N, G], None if symmetric) for groups of columns.

    Zero is always on the grid. The scale is already rounded to `dtype`, so that values may be rounded by it.
    Symmetric scales are max / ((2^b - 1) / 2), as in compressed-tensors: it halves the error of the most negative.
    """
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    least = weight_NGC.float().amin(2).clamp_max(0)
    most = weight_NGC.float().amax(2).clamp_min(0)
    span = torch.maximum(-least, most) * 2 if symmetric else most - least
    scale = (span / (high - low)).to(dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if symmetric:
        return scale, None
    return scale, (low - least / scale.float()).round().clamp(low, high).to(torch.int8)


def to_grid(weight_NGC: Tensor, scale_NG: Tensor, zero_NG: Tensor | None, bits: int) -> Tensor:
    """Values int8 [N, G, C], signed, nearest to the weight."""
    values = weight_NGC.float() / scale_NG.float().unsqueeze(2)
    if zero_NG is not None:
        values += zero_NG.unsqueeze(2)
    return values.round_().clamp_(-(1 << bits - 1), (1 << bits - 1) - 1).to(torch.int8)


def from_grid(values_NGC: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> Tensor:
    """(value - zero) * scale in float32 [N, G, C]."""
    wide = values_NGC.float()
    if zero_NG is not None:
        wide -= zero_NG.unsqueeze(2)
    return wide.mul_(scale_NG.float().unsqueeze(2))


@dataclass(frozen=True)
class Integers(Scheme):
    """Weights as signed integers with one scale per row or per group of columns, inputs as they are.

    weight   the values; `store` and `values` say how they lie
    scale    any float dtype [N, G], G = 1 for whole rows
    zero     int8 [N, G]; absent where symmetric
    order    int32 [K], where columns were sorted by group: column i of the values is column order[i] of the weight
    """

    columns_per_step: ClassVar[int] = 1
    """Columns in one element of the kept values."""

    def store(self, values_NK: Tensor) -> Tensor:
        """Signed values (int8) as they are kept."""
        raise NotImplementedError

    def values(self, packed: Packed) -> Tensor:
        """Back: int8 [N, K]."""
        raise NotImplementedError

    @property
    def axes(self) -> Mapping[str, Axes]:
        scales = Axes(1, self.spec.group)
        return {
            "weight": Axes(1, self.columns_per_step), "scale": scales, "zero": scales, "order": Axes(0, 0),
        }  # fmt: skip

    def grouped(self, weight_NK: Tensor) -> Tensor:
        """[N, K] as [N, groups, columns of one]."""
        return weight_NK.unflatten(1, (-1, self.spec.group or weight_NK.shape[1]))

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        groups = self.grouped(weight_NK)
        bits = int(self.spec.bits)
        scale, zero = grid(groups, bits, self.spec.symmetric, weight_NK.dtype)
        packed = {"weight": self.store(to_grid(groups, scale, zero, bits).flatten(1)), "scale": scale}
        return packed if zero is None else {**packed, "zero": zero}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        values = self.values(packed).unflatten(1, (packed["scale"].shape[1], -1))
        weight = from_grid(values, packed["scale"], packed.get("zero")).flatten(1).to(dtype)
        if "order" not in packed:
            return weight
        return torch.empty_like(weight).index_copy_(1, packed["order"].long(), weight)
