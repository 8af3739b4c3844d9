"""Weights as 4-bit integers in groups of columns, inputs as they are."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import w4a16
from headrace.kernels.norm import Norm
from headrace.kernels.w4a16 import Int4Weight, linear_w4a16, norm_linear_w4a16
from headrace.quant.bits import WORD, pack_bits, unpack_bits
from headrace.quant.integers import Integers
from headrace.quant.scheme import Packed

BITS = 4


@dataclass(frozen=True)
class Int4(Integers):
    """weight int32 [N, K / 8]: eight values to a word, value + 8, lowest bits first.

    Once prepared for a GPU, weight is int16 in the tiles of kernels/w4a16.py, and order int64.
    """

    bits, usual = BITS, 128
    columns_per_step: ClassVar[int] = WORD // BITS

    def fits(self, rows: int, columns: int) -> str | None:
        if columns % self.columns_per_step:
            return f"{columns} columns do not fill words of {self.columns_per_step} values"
        return super().fits(rows, columns)

    def store(self, values_NK: Tensor) -> Tensor:
        return pack_bits(values_NK.int() + (1 << BITS - 1), BITS)

    def values(self, packed: Packed) -> Tensor:
        weight = packed["weight"]
        if weight.dtype == torch.int16:
            return w4a16.values(weight) - w4a16.MIDDLE
        return unpack_bits(weight, BITS, weight.shape[1] * self.columns_per_step).char() - (1 << BITS - 1)

    def prepare(self, packed: Packed) -> Packed:
        """See Scheme. As they are where they are no whole tiles."""
        rows, columns = self.size(packed)
        if not w4a16.fits(rows, columns, packed["scale"].shape[1]):
            return packed
        laid = {"weight": w4a16.tiled(packed["weight"]), "scale": packed["scale"].contiguous()}
        if "zero" in packed:
            laid["zero"] = packed["zero"].contiguous()
        if "order" in packed:
            laid["order"] = packed["order"].long()
        return laid

    def apply(self, packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
        tiles = _tiles(packed)
        return super().apply(packed, x, bias) if tiles is None else linear_w4a16(x, tiles, bias)

    def normed(
        self, packed: Packed, x_TK: Tensor, residual_TK: Tensor | None, norm: Norm, *,
        bias: Tensor | None = None, gated: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        tiles = _tiles(packed)
        if tiles is None:
            return super().normed(packed, x_TK, residual_TK, norm, bias=bias, gated=gated)
        return norm_linear_w4a16(x_TK, residual_TK, *norm, tiles, bias, gated=gated)


def _tiles(packed: Packed) -> Int4Weight | None:
    """A prepared weight; None for one that is not."""
    if packed["weight"].dtype != torch.int16:
        return None
    return Int4Weight(packed["weight"], packed["scale"], packed.get("zero"), packed.get("order"))


SCHEMES = Int4.named()
