"""Linear layers with 4-bit weights: which kernel multiplies them, and weights unpacked into memory, in Triton.

M tokens, N outputs, K inputs; weights as kernels/w4a16.py tiles them. A tile of 16 rows and 64 columns is 16 bytes per
thread of a warp, which are the matrix unit's operand A, four times over: nibble j of all of them goes with inputs
16 j to 16 j + 15. So outputs are the rows of a product here and tokens its columns, of which 8 are enough.

Numbers of nibbles: w4a16_numbers.py.
Where gate and up are computed together ("gated") the weight is [2N, K], gate first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import configs, rules
from headrace.kernels.choices import Int4Few, Int4One
from headrace.kernels.gpu import matmul
from headrace.kernels.gpu.norm import normalize
from headrace.kernels.gpu.product import Fusion, wait
from headrace.kernels.gpu.w4a16_few import few, load_block
from headrace.kernels.gpu.w4a16_one import one
from headrace.kernels.gpu.w4a16_tile import tile
from headrace.kernels.launch import rows_of
from headrace.kernels.w4a16 import Int4Weight


@triton.jit
def unpack_kernel(
    weight_ptr, scale_ptr, zero_ptr, out_ptr, KB, G,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of 16 rows and CHUNK tiles to [N, K] in the output's type."""
    block, kb = tl.program_id(0), tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    wait(PDL)
    w, s, more, z, z_more = load_block(weight_ptr, scale_ptr, zero_ptr, block, kb, KB, G, GROUP, False, ZERO)
    tile = tl.permute(tl.reshape(w, [CHUNK, 8, 4, 2, 2, 2]), (4, 1, 0, 3, 2, 5))
    tile = tl.reshape(tile, [16, CHUNK, 16])
    row = (block * 16 + tl.arange(0, 16)).to(tl.int64)[:, None, None]
    there = (kb < KB)[None, :, None]
    for j in tl.static_range(4):
        scale, zero = (s, z) if j < 2 else (more, z_more)
        v = ((tile.to(tl.int32) >> (4 * j)) & 15).to(tl.float32) - 8.0
        if ZERO:
            v -= tl.permute(zero, (1, 0)).to(tl.float32)[:, :, None]
        v *= tl.permute(scale, (1, 0)).to(tl.float32)[:, :, None]
        column = kb[None, :, None] * 64 + 16 * j + tl.arange(0, 16)[None, None, :]
        tl.store(out_ptr + row * (KB * 64) + column, v.to(out_ptr.dtype.element_ty), mask=there)


def unpacked(weight: Int4Weight, dtype: torch.dtype, pdl: bool = False) -> Tensor:
    """The weight [N, K], in the order of the tiles' columns."""
    n, k = weight.shape
    out = torch.empty((n, k), dtype=dtype, device=weight.tiles.device)
    unpack_kernel[(n // 16, triton.cdiv(k // 64, 8))](
        weight.tiles, weight.scale, weight.zero, out, k // 64, weight.scale.shape[1],
        CHUNK=8, GROUP=weight.group, ZERO=weight.zero is not None, PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    return out


def through_memory(x_MK: Tensor, weight: Int4Weight, fusion: Fusion, pdl: bool = False) -> Tensor:
    """out [M, N] by unpacking the weight, for a fusion without a norm: the memory is free again at once."""
    return matmul.product(x_MK, unpacked(weight, x_MK.dtype, pdl), fusion)[0]


def product(
    x_MK: Tensor, residual_MK: Tensor | None, norm_weight_K: Tensor | None, eps: float, offset: float,
    weight: Int4Weight, bias_N: Tensor | None, gated: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [M, N], x + residual [M, K]) by whichever kernel the tables name for this device and shape."""
    x = rows_of(x_MK)
    cap, pdl = configs.capability(x.device), configs.pdl(x.device)
    fusion = Fusion(bias_N, norm_weight_K, eps, offset, before=residual_MK, gated=gated)
    tokens, n, k = x.shape[0], fusion.outputs(weight.tiles) * 16, x.shape[1]
    alone = tokens == 1 and weight.order is None
    if fusion.gain is not None and not alone:
        x, total = normalize(x, residual_MK, norm_weight_K, eps, offset, pdl)
        fusion = Fusion(bias_N, gated=gated)
    else:
        total = x
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    if configs.fetches4(cap, tokens):
        from headrace.kernels.gpu import w4a16_wide

        if w4a16_wide.fits(x, weight):
            wide = rules.int4_wide(tokens, *weight.shape, gated, configs.multiprocessors(x.device))
            return w4a16_wide.wide(x, weight, bias_N, gated, wide, pdl), total
    config = configs.int4(cap, tokens, n, k, gated)
    if isinstance(config, Int4One):
        out, kept = one(x, weight, config, configs.multiprocessors(x.device) if x.is_cuda else 4, fusion, pdl)
        return out, kept if alone else total
    if isinstance(config, Int4Few):
        out, kept = few(x, weight, config, fusion, pdl)
        return out, kept if alone else total
    if config is None:
        return through_memory(x, weight, fusion, pdl), total
    return tile(x, weight, config, fusion, pdl), total
