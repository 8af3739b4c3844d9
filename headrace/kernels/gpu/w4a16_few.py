"""Linear layers with 4-bit weights for one to sixteen tokens in Triton: unpacked in registers, as w4a16.py has them.

With one token the sums begin with what is too much in the numbers of nibbles instead: 136 times the sum of the inputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.choices import Int4Few
from headrace.kernels.gpu import matmul
from headrace.kernels.gpu.product import Fusion, ask_for_lines, wait
from headrace.kernels.gpu.w4a16_numbers import codes, low_of, magic, numbers, raw_numbers
from headrace.kernels.w4a16 import Int4Weight


@triton.jit
def prefetch_tiles(weight_ptr, first, TILES, AHEAD: tl.constexpr):
    """Ask for AHEAD tiles of 512 bytes from tile `first` on, but no more than TILES, to be brought to L2."""
    if AHEAD > 0:
        line = tl.minimum(tl.arange(0, AHEAD * 4) * 64, TILES * 256 - 64)
        ask_for_lines(weight_ptr + first * 256 + line)


@triton.jit
def load_block(
    weight_ptr, scale_ptr, zero_ptr, block, kb, KB, G,
    GROUP: tl.constexpr, EVEN: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """Tiles [B, 256] at kb of a block of 16 rows, scales and zero points [B, 16] of their halves."""
    row = block * 16 + tl.arange(0, 16)
    at = weight_ptr + (block.to(tl.int64) * KB + kb)[:, None] * 256 + tl.arange(0, 256)[None, :]
    one = row[None, :].to(tl.int64) * G + (kb * 64 // GROUP)[:, None]
    two = row[None, :].to(tl.int64) * G + ((kb * 64 + 32) // GROUP)[:, None]
    if EVEN:
        w, s = tl.load(at), tl.load(scale_ptr + one)
        more = tl.load(scale_ptr + two) if GROUP == 32 else s
    else:
        there = (kb < KB)[:, None]
        w, s = tl.load(at, mask=there, other=0), tl.load(scale_ptr + one, mask=there, other=0.0)
        more = tl.load(scale_ptr + two, mask=there, other=0.0) if GROUP == 32 else s
    if ZERO:
        there = (kb < KB)[:, None]
        z = tl.load(zero_ptr + one, mask=there, other=0)
        z_more = tl.load(zero_ptr + two, mask=there, other=0) if GROUP == 32 else z
        return w, s, more, z, z_more
    else:
        return w, s, more, s, s


@triton.jit
def half_sums(
    acc, tile, zero, x_a, x_b, A: tl.constexpr, B: tl.constexpr,
    ONE: tl.constexpr, CODE: tl.constexpr, ZERO: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """acc [B, 16, M] plus what the nibbles A and B give."""
    if ONE:
        acc = tl.dot(raw_numbers(tile, A, CODE, DTYPE), x_a, acc)
        acc = tl.dot(raw_numbers(tile, B, CODE, DTYPE), x_b, acc)
    else:
        if ZERO:
            low = tl.broadcast_to(low_of(zero, DTYPE)[:, :, None], tile.shape)
        else:
            low = tl.full(tile.shape, -8.0 - magic(DTYPE), DTYPE)
        acc = tl.dot(numbers(tile, low, A, CODE, DTYPE), x_a, acc)
        acc = tl.dot(numbers(tile, low, B, CODE, DTYPE), x_b, acc)
    return acc


@triton.jit
def start(zero, x_sum, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ONE: tl.constexpr, ZERO: tl.constexpr,
          DTYPE: tl.constexpr):  # fmt: skip
    """Where sums [B, 16, COLUMNS] begin: of one token, whose numbers are raw, with what is too much in them."""
    if ONE:
        if ZERO:
            low = zero.to(tl.float32) + 8.0 + magic(DTYPE)
            return tl.broadcast_to((low * -x_sum[:, None])[:, :, None], [ROWS, 16, COLUMNS])
        return tl.broadcast_to((x_sum * (-8.0 - magic(DTYPE)))[:, None, None], [ROWS, 16, COLUMNS])
    return tl.zeros([ROWS, 16, COLUMNS], tl.float32)


@triton.jit
def scaled(acc, scale, ONE: tl.constexpr):
    """Sums times the scales of their rows [B, 16]; of the equal columns of one token every other is enough."""
    if ONE:
        acc, _ = tl.split(tl.reshape(acc, [acc.shape[0], 16, acc.shape[2] // 2, 2]))
    return acc * scale.to(tl.float32)[:, :, None]


@triton.jit
def block_sums(
    sums, w, s, more, z, z_more, x_0, x_1, x_2, x_3, x_sum, x_sum_more, GROUP: tl.constexpr, ONE: tl.constexpr,
    CODE: tl.constexpr, ZERO: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """sums [B, 16, M] plus those of tiles [B, 256] with their part of the inputs, x_j [B, 16, M]."""
    B: tl.constexpr = w.shape[0]
    COLUMNS: tl.constexpr = x_0.shape[2]
    tile = tl.reshape(w, [B, 8, 4, 2, 2, 2])  # row of 8, pair, half of columns, half of rows, one of two
    tile = tl.reshape(tl.permute(tile, (0, 4, 1, 3, 2, 5)), [B, 16, 16])
    if GROUP == 32:
        acc = start(z, x_sum, B, COLUMNS, ONE, ZERO, DTYPE)
        sums += scaled(half_sums(acc, tile, z, x_0, x_1, 0, 1, ONE, CODE, ZERO, DTYPE), s, ONE)
        acc = start(z_more, x_sum_more, B, COLUMNS, ONE, ZERO, DTYPE)
    else:
        acc = start(z, x_sum + x_sum_more, B, COLUMNS, ONE, ZERO, DTYPE)
        acc = half_sums(acc, tile, z, x_0, x_1, 0, 1, ONE, CODE, ZERO, DTYPE)
    return sums + scaled(half_sums(acc, tile, z_more, x_2, x_3, 2, 3, ONE, CODE, ZERO, DTYPE), more, ONE)


@triton.jit
def inputs(
    x_ptr, residual_ptr, gain_ptr, total_ptr, squares, kb, M, K, x_stride, offset, first,
    COLUMNS: tl.constexpr, ONE: tl.constexpr, NORM: tl.constexpr, ADD_IN: tl.constexpr,
):  # fmt: skip
    """(inputs of tiles kb as four [B, 16, COLUMNS], one per nibble; sums [B] of halves; squares and theirs [B, 64]).

    One token fills all columns and alone has sums; the norm's weight is applied to it, but not its size.
    """
    B: tl.constexpr = kb.shape[0]
    k = kb[:, None] * 64 + tl.arange(0, 64)[None, :]
    if ONE:
        x = matmul.load_input(x_ptr, residual_ptr, total_ptr, k, K, first, ADD_IN)
        if NORM:
            squares += x * x
            x *= tl.load(gain_ptr + k, mask=k < K, other=0.0).to(tl.float32) + offset
        x = x.to(x_ptr.dtype.element_ty)
        sum_01, sum_23 = tl.split(tl.sum(tl.reshape(x.to(tl.float32), [B, 2, 32]), 2))
        x_02, x_13 = tl.split(tl.permute(tl.reshape(x, [B, 2, 2, 16]), (0, 1, 3, 2)))
        x_0, x_2 = tl.split(tl.permute(x_02, (0, 2, 1)))
        x_1, x_3 = tl.split(tl.permute(x_13, (0, 2, 1)))
        x_0 = tl.broadcast_to(x_0[:, :, None], [B, 16, COLUMNS])
        x_1 = tl.broadcast_to(x_1[:, :, None], [B, 16, COLUMNS])
        x_2 = tl.broadcast_to(x_2[:, :, None], [B, 16, COLUMNS])
        x_3 = tl.broadcast_to(x_3[:, :, None], [B, 16, COLUMNS])
    else:
        m = tl.arange(0, COLUMNS)[:, None, None]
        at = x_ptr + m.to(tl.int64) * x_stride + k[None, :, :]
        x = tl.load(at, mask=(m < M) & (k < K)[None, :, :], other=0.0)
        x_02, x_13 = tl.split(tl.permute(tl.reshape(x, [COLUMNS, B, 2, 2, 16]), (1, 4, 0, 2, 3)))
        x_0, x_2 = tl.split(x_02)
        x_1, x_3 = tl.split(x_13)
        sum_01 = tl.zeros([B], tl.float32)
        sum_23 = sum_01
    return x_0, x_1, x_2, x_3, sum_01, sum_23, squares


@triton.jit
def finish_few(
    acc, more, bias_ptr, out_ptr, block, M, N, ONE: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Bias, activation and store for 16 outputs: acc [16, M], and `more` of up where gated."""
    n = block * 16 + tl.arange(0, 16)
    live = n < N
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=live, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BIAS:
            more += tl.load(bias_ptr + N + n, mask=live, other=0.0).to(tl.float32)[:, None]
        acc = acc * tl.sigmoid(acc) * more
    m = tl.arange(0, acc.shape[1])
    where = m.to(tl.int64)[None, :] * N + n[:, None]
    there = live[:, None] & (m < (1 if ONE else M))[None, :]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["M"])
def few_kernel(
    x_ptr, residual_ptr, gain_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, total_ptr,
    M, N, K, G, x_stride, eps, offset,
    COLUMNS: tl.constexpr, ONE: tl.constexpr, PAIR: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    EVEN: tl.constexpr, GROUP: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, ADD_IN: tl.constexpr,
    BIAS: tl.constexpr, ZERO: tl.constexpr, CODE: tl.constexpr, PDL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """out [M, N] = act(norm(x + residual) @ weight.T + bias); with PAIR two blocks of 16 rows per program.

    The warps share the inputs out among themselves, CHUNK tiles at a time; scales are applied to the sums of a tile
    and rms(x), a factor common to all inputs, to those of a row. A norm takes ONE token.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    BLOCKS: tl.constexpr = 2 if PAIR and not GATED else 1
    pid = tl.program_id(0)
    KB, blocks = K // 64, N // 16
    block = pid * BLOCKS
    other = pid + blocks if GATED else tl.minimum(block + 1, blocks - 1)
    kb = tl.arange(0, CHUNK)
    AHEAD: tl.constexpr = triton.next_power_of_2(CHUNKS * CHUNK) if PDL and CHUNKS > 1 else 0
    if CHUNKS == 1:
        w, s, s_more, z, z_more = load_block(
            weight_ptr, scale_ptr, zero_ptr, block, kb, KB, G, GROUP, EVEN, ZERO
        )
        if PAIR:
            v, r, r_more, y, y_more = load_block(
                weight_ptr, scale_ptr, zero_ptr, other, kb, KB, G, GROUP, EVEN, ZERO
            )
    prefetch_tiles(weight_ptr, block.to(tl.int64) * KB, KB, AHEAD)
    if PAIR:
        prefetch_tiles(weight_ptr, other.to(tl.int64) * KB, KB, AHEAD)
    wait(PDL)
    squares = tl.zeros([CHUNK, 64], tl.float32)
    sums = tl.zeros([CHUNK, 16, COLUMNS // 2 if ONE else COLUMNS], tl.float32)
    more = sums
    for chunk in tl.range(CHUNKS, num_stages=STAGES):
        here = kb + chunk * CHUNK
        if CHUNKS > 1:
            w, s, s_more, z, z_more = load_block(
                weight_ptr, scale_ptr, zero_ptr, block, here, KB, G, GROUP, EVEN, ZERO
            )
            if PAIR:
                v, r, r_more, y, y_more = load_block(
                    weight_ptr, scale_ptr, zero_ptr, other, here, KB, G, GROUP, EVEN, ZERO
                )
        x_0, x_1, x_2, x_3, sum_01, sum_23, squares = inputs(
            x_ptr, residual_ptr, gain_ptr, total_ptr, squares, here, M, K, x_stride, offset, pid == 0,
            COLUMNS, ONE, NORM, ADD_IN,
        )  # fmt: skip
        sums = block_sums(sums, w, s, s_more, z, z_more, x_0, x_1, x_2, x_3, sum_01, sum_23,
                          GROUP, ONE, CODE, ZERO, DTYPE)  # fmt: skip
        if PAIR:
            more = block_sums(more, v, r, r_more, y, y_more, x_0, x_1, x_2, x_3, sum_01, sum_23,
                              GROUP, ONE, CODE, ZERO, DTYPE)  # fmt: skip
    acc, up = tl.sum(sums, 0), tl.sum(more, 0)
    if NORM:
        shrink = tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / K + eps)
        acc *= shrink
        up *= shrink
    finish_few(acc, up, bias_ptr, out_ptr, block, M, N, ONE, GATED, BIAS)
    if PAIR and not GATED:
        finish_few(up, up, bias_ptr, out_ptr, block + 1, M, N, ONE, False, BIAS)


def few(
    x_MK: Tensor, weight: Int4Weight, config: Int4Few, fusion: Fusion = matmul.PLAIN, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """(out [M, N], x + before [M, K]) for up to 16 tokens; only one may have a norm."""
    assert x_MK.stride(1) == 1
    m, k = x_MK.shape
    assert m <= 16
    assert m == 1 or fusion.gain is None, "the norm is a launch of its own"
    n = fusion.outputs(weight.tiles) * 16
    pair = fusion.gated or config.pair
    out = torch.empty((m, n), dtype=x_MK.dtype, device=x_MK.device)
    total = matmul.new_total(x_MK, fusion)
    chunk = config.chunk // 64
    chunks = triton.cdiv(k // 64, chunk)
    few_kernel[(triton.cdiv(n // 16, 2 if pair and not fusion.gated else 1),)](
        x_MK, fusion.before, fusion.gain, weight.tiles, weight.scale, weight.zero, fusion.bias, out, total,
        m, n, k, weight.scale.shape[1], x_MK.stride(0), fusion.eps, fusion.offset,
        COLUMNS=8 if m <= 8 else 16, ONE=m == 1, PAIR=pair, CHUNK=chunk, CHUNKS=chunks,
        EVEN=k == chunks * config.chunk, GROUP=weight.group, GATED=fusion.gated, NORM=fusion.gain is not None,
        ADD_IN=fusion.before is not None, BIAS=fusion.bias is not None, ZERO=weight.zero is not None,
        CODE=codes(x_MK.dtype, low=m > 1) if x_MK.is_cuda else None,
        PDL=pdl, STAGES=config.stages, num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out, total
