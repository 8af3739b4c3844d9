"""Linear layers whose weights are 4-bit integers in groups of columns, alone and fused with a norm and a gate.

T tokens, K inputs, N outputs. Each function is defined by unpacking the weight and the functions of matmul.py. On a
GPU weights lie in the order in which its matrix units take them (`tiled`), and few tokens are multiplied without
unpacking them in memory. There scales multiply sums in float32 where the definition rounds each weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels import matmul
from headrace.kernels.launch import TENSOR_CORE_TYPES, on_gpu

ROWS, COLUMNS = 16, 64
"""Of a weight, in one tile: 256 elements of int16, one after the other."""
MIDDLE = 8
"""What is stored for zero where there is no zero point."""


class Int4Weight(NamedTuple):
    """A weight [N, K] on a GPU: (value - 8 - zero) * scale.

    tiles   int16 [N / 16, K / 64, 256], see `tiled`
    scale   any float dtype [N, K / columns of a group], contiguous
    zero    int8, as scale; None where symmetric
    order   int64 [K]: column i of the tiles is column order[i] of the weight; None where they are the same
    """

    tiles: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.tiles.shape[0] * ROWS, self.tiles.shape[1] * COLUMNS

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scale.shape[1]


def fits(rows: int, columns: int, groups: int, gated: bool = False) -> bool:
    """Whether a weight of this shape can be tiled: whole tiles, and groups that a tile's halves are whole parts of."""
    whole = rows % (ROWS * (2 if gated else 1)) == 0 and columns % COLUMNS == 0
    return whole and columns % groups == 0 and (columns // groups) % 32 == 0 and _apart(columns // groups)


def _apart(group: int) -> bool:
    """Whether no tile has columns of two groups, but for halves of 32."""
    return group == COLUMNS // 2 or group % COLUMNS == 0


def tiled(words_NW: Tensor) -> Tensor:
    """int32 [N, K / 8] (column i of a word in bits 4i to 4i + 3) to int16 [N / 16, K / 64, 256].

    Nibble j of element (row, c) of a tile is column 16 j + c; elements lie [row % 8, c % 8 / 2, c / 8, row / 8, c % 2],
    so that a thread of a warp, which stands for the first two, has 16 bytes: the operand A of mma.m16n8k16 (PTX ISA
    8.5, section 9.7.14.5.8), four times over.
    """
    rows, columns = words_NW.shape[0], words_NW.shape[1] * 8
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words_NW.device)
    tiles = []
    for start in range(0, rows, 2048):  # four bytes per value: not of a whole weight at once
        part = words_NW[start : start + 2048]
        nibbles = (part.unsqueeze(-1) >> shifts & 15).view(-1, 2, 8, columns // COLUMNS, 4, 2, 4, 2)
        # [block, half of rows, row, tile, nibble, half of columns, pair, one of two]
        lanes = nibbles.permute(0, 3, 2, 6, 5, 1, 7, 4)
        wide = (lanes << shifts[:4]).sum(-1)
        wide = torch.where(wide >= 1 << 15, wide - (1 << 16), wide)
        tiles.append(wide.to(torch.int16).view(-1, columns // COLUMNS, ROWS * COLUMNS // 4))
    return torch.cat(tiles)


def values(tiles: Tensor) -> Tensor:
    """Back: the values as stored, int8 [N, K] from 0 to 15."""
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=tiles.device)
    lanes = tiles.int().view(tiles.shape[0], tiles.shape[1], 8, 4, 2, 2, 2, 1) >> shifts & 15
    nibbles = lanes.permute(0, 5, 2, 1, 7, 4, 3, 6)
    return nibbles.reshape(tiles.shape[0] * ROWS, tiles.shape[1] * COLUMNS).to(torch.int8)


def unpack_ref(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """The definition of unpack."""
    wide = (values(weight.tiles) - MIDDLE).float().unflatten(1, (weight.scale.shape[1], -1))
    if weight.zero is not None:
        wide -= weight.zero.unsqueeze(2)
    return wide.mul_(weight.scale.float().unsqueeze(2)).flatten(1).to(dtype)


def unpack(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] with its columns in the order of the tiles, rounded to `dtype` once."""
    if dtype in TENSOR_CORE_TYPES and on_gpu(weight.tiles):
        from headrace.kernels.gpu.w4a16 import unpacked

        return unpacked(weight, dtype)
    return unpack_ref(weight, dtype)


def norm_linear_w4a16(
    x_TK: Tensor, residual_TK: Tensor | None, norm_weight_K: Tensor | None, eps: float, offset: float,
    weight: Int4Weight, bias_N: Tensor | None = None, *, gated: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As matmul.norm_linear; no norm (nor residual) where it has no weight, and then the second is x."""
    n, k = weight.shape
    ours = x_TK.dtype in TENSOR_CORE_TYPES and x_TK.dim() == 2 and x_TK.shape[0] > 0
    ours = ours and on_gpu(x_TK, weight.tiles, residual_TK, norm_weight_K, bias_N)
    if ours and fits(n, k, weight.scale.shape[1], gated):
        from headrace.kernels.gpu.w4a16 import product

        return product(x_TK, residual_TK, norm_weight_K, eps, offset, weight, bias_N, gated)
    whole = unpack(weight, x_TK.dtype)
    if norm_weight_K is not None and weight.order is None:
        return matmul.norm_linear(x_TK, residual_TK, norm_weight_K, eps, offset, whole, bias_N, gated=gated)
    x_TK, total = normed(x_TK, residual_TK, norm_weight_K, eps, offset)
    x_TK = x_TK if weight.order is None else x_TK.index_select(-1, weight.order)
    return (matmul.linear_silu_mul if gated else matmul.linear)(x_TK, whole, bias_N), total


def normed(
    x_TK: Tensor, residual_TK: Tensor | None, norm_weight_K: Tensor | None, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), both x where there is no norm."""
    if norm_weight_K is None:
        assert residual_TK is None, "a residual before the product comes with its norm"
        return x_TK, x_TK
    if residual_TK is None:
        return matmul.rms_norm(x_TK, norm_weight_K, eps, offset), x_TK
    return matmul.add_rms_norm(x_TK, residual_TK, norm_weight_K, eps, offset)


def linear_w4a16(x: Tensor, weight: Int4Weight, bias_N: Tensor | None = None) -> Tensor:
    """x [..., K] times the weight, plus bias, as [..., N]."""
    flat = x.reshape(-1, x.shape[-1])
    out = norm_linear_w4a16(flat, None, None, 0.0, 0.0, weight, bias_N)[0]
    return out.view(*x.shape[:-1], weight.shape[0])
