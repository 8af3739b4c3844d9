"""Linear layers with 4-bit weights in Triton: unpacked in registers, multiplied by the matrix units.

M tokens, N outputs, K inputs; weights as kernels/w4a16.py tiles them. A tile of 16 rows and 64 columns is 16 bytes per
thread of a warp, which are the matrix unit's operand A, four times over: nibble j of all of them goes with inputs
16 j to 16 j + 15. So outputs are the rows of a product here and tokens its columns, of which 8 are enough.

Numbers of nibbles: w4a16_numbers.py. With one token the sums begin with what is too much in them instead: 136 times the
sum of the inputs.
Where gate and up are computed together ("gated") the weight is [2N, K], gate first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import configs, rules
from headrace.kernels.choices import Int4Few, Int4One, Int4Tile
from headrace.kernels.gpu import matmul
from headrace.kernels.gpu.norm import normalize
from headrace.kernels.gpu.product import MOST_TILES, Fusion, ask_for_lines, split_counters, wait
from headrace.kernels.gpu.w4a16_numbers import codes, low_of, magic, numbers, raw_numbers, scaled_numbers
from headrace.kernels.gpu.w4a16_one import one
from headrace.kernels.launch import rows_of
from headrace.kernels.w4a16 import Int4Weight


@triton.jit
def prefetch_tiles(weight_ptr, first, TILES, AHEAD: tl.constexpr):
    """Ask for AHEAD tiles of 512 bytes from tile `first` on, but no more than TILES, to be brought to L2."""
    if AHEAD > 0:
        line = tl.minimum(tl.arange(0, AHEAD * 4) * 64, TILES * 256 - 64)
        ask_for_lines(weight_ptr + first * 256 + line)


# -- a few tokens -----------------------------------------------------------------------------------------------


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
        there = k < K
        x = tl.load(x_ptr + k, mask=there, other=0.0)
        if ADD_IN:
            other = tl.load(residual_ptr + k, mask=there, other=0.0)
            x = (x.to(tl.float32) + other.to(tl.float32)).to(total_ptr.dtype.element_ty)
            if first:
                tl.store(total_ptr + k, x, mask=there)
        if NORM:
            wide = x.to(tl.float32)
            squares += wide * wide
            gain = tl.load(gain_ptr + k, mask=there, other=0.0).to(tl.float32) + offset
            x = (wide * gain).to(x_ptr.dtype.element_ty)
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


# -- more tokens ------------------------------------------------------------------------------------------------


@triton.jit
def load_inputs(x_ptr, k, m, M, K, x_stride, EVEN: tl.constexpr):
    """Inputs k [C] of tokens m as [M, C]."""
    at = x_ptr + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    if EVEN:
        return tl.load(at, mask=(m < M)[:, None], other=0.0)
    return tl.load(at, mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def load_scales(ptr, row, kb, at: tl.constexpr, KB, G, GROUP: tl.constexpr):
    """Of rows [R] and tiles kb [B] at their column `at`, spread over 16 columns each: [R, B * 16]."""
    there = (kb < KB)[None, :]
    s = tl.load(ptr + row.to(tl.int64)[:, None] * G + ((kb * 64 + at) // GROUP)[None, :], mask=there, other=0)
    wide = tl.broadcast_to(s[:, :, None], [row.shape[0], kb.shape[0], 16])
    return tl.reshape(wide, [row.shape[0], kb.shape[0] * 16])


@triton.jit
def finish_tile(
    acc, bias_ptr, out_ptr, m, first, M, N,
    BLOCKS: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Bias, activation and store for sums [BLOCKS * 16, M], blocks of gate and up taking turns where gated."""
    if GATED:
        tokens: tl.constexpr = acc.shape[1]
        acc = tl.permute(tl.reshape(acc, [BLOCKS // 2, 2, 16, tokens]), (0, 2, 3, 1))
        gate, up = tl.split(tl.reshape(acc, [BLOCKS * 8, tokens, 2]))
        n = first + tl.arange(0, BLOCKS * 8)
        if BIAS:
            gate += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
            up += tl.load(bias_ptr + N + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        acc = gate * tl.sigmoid(gate) * up
    else:
        n = first + tl.arange(0, BLOCKS * 16)
        if BIAS:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    where = m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit(do_not_specialize=["M"])
def tile_kernel(
    x_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr,
    M, N, K, G, x_stride, steps, split,
    TOKENS: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr,
    GROUP: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, ZERO: tl.constexpr, CODE: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out [M, N] = act(x @ weight.T + bias): tiles of BLOCKS * 16 rows and TOKENS tokens, CHUNK weight tiles a step.

    Each weight is scaled and rounded as the definition does it. With SPLIT as in matmul.py's skinny_kernel.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    WIDTH: tl.constexpr = CHUNK * 16
    outputs: tl.constexpr = BLOCKS * 8 if GATED else BLOCKS * 16
    n_tiles = tl.cdiv(N, outputs)
    pid_m, pid_n = matmul.tile_of(M, n_tiles, TOKENS)
    part = tl.program_id(1)
    KB, blocks = K // 64, N // 16
    b = tl.arange(0, BLOCKS)
    if GATED:
        block = tl.minimum(pid_n * (BLOCKS // 2) + b // 2, blocks - 1) + (b % 2) * blocks
    else:
        block = tl.minimum(pid_n * BLOCKS + b, blocks - 1)
    row = tl.reshape(block[:, None] * 16 + tl.arange(0, 16)[None, :], [BLOCKS * 16])
    at = block.to(tl.int64) * KB
    if PREFETCH > 0:
        line = tl.minimum(part * steps * CHUNK * 256 + tl.arange(0, PREFETCH * 4) * 64, KB * 256 - 64)
        ask_for_lines(weight_ptr + at[:, None] * 256 + line[None, :])
    wait(PDL)
    m = pid_m * TOKENS + tl.arange(0, TOKENS)
    c = tl.arange(0, WIDTH)
    within = c // 16 * 64 + c % 16
    acc = tl.zeros([BLOCKS * 16, TOKENS], tl.float32)
    for step in tl.range(
        part * steps, tl.minimum(part * steps + steps, tl.cdiv(KB, CHUNK)), num_stages=STAGES
    ):
        first = step * CHUNK
        kb = first + tl.arange(0, CHUNK)
        inner = tl.arange(0, CHUNK * 256)
        here = at[:, None] * 256 + first * 256 + inner[None, :]
        if EVEN:
            w = tl.load(weight_ptr + here)
        else:
            w = tl.load(weight_ptr + here, mask=(first * 256 + inner < KB * 256)[None, :], other=0)
        tile = tl.permute(tl.reshape(w, [BLOCKS, CHUNK, 8, 4, 2, 2, 2]), (0, 5, 2, 1, 4, 3, 6))
        tile = tl.reshape(tile, [BLOCKS * 16, WIDTH])
        low = tl.full([BLOCKS * 16, WIDTH], -8.0 - magic(DTYPE), DTYPE)
        for j in tl.static_range(4):
            if j == 0 or (GROUP == 32 and j == 2):
                scale = load_scales(scale_ptr, row, kb, 16 * j, KB, G, GROUP).to(DTYPE)
                if ZERO:
                    low = low_of(load_scales(zero_ptr, row, kb, 16 * j, KB, G, GROUP), DTYPE)
            x = load_inputs(x_ptr, first * 64 + within + 16 * j, m, M, K, x_stride, EVEN)
            acc = tl.dot(scaled_numbers(tile, low, scale, j, CODE, DTYPE), tl.trans(x), acc)
    first_n = pid_n * outputs
    if not SPLIT:
        finish_tile(acc, bias_ptr, out_ptr, m, first_n, M, N, BLOCKS, GATED, BIAS)
    else:
        size: tl.constexpr = BLOCKS * 16 * TOKENS
        tile_id = pid_m * n_tiles + pid_n
        inner = tl.arange(0, BLOCKS * 16)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
        slab = partial_ptr + tile_id.to(tl.int64) * (split * size)
        tl.store(slab + part * size + inner, acc)
        tl.debug_barrier()  # every thread's sums are written before one thread says so
        ticket = tl.atomic_add(count_ptr + tile_id, 1, sem="acq_rel", scope="gpu")
        if ticket == split - 1:
            total = tl.zeros([BLOCKS * 16, TOKENS], tl.float32)
            for s in tl.range(split, num_stages=1):
                total += tl.load(slab + s * size + inner, cache_modifier=".cg")
            tl.store(count_ptr + tile_id, 0)  # ready for the next launch
            finish_tile(total, bias_ptr, out_ptr, m, first_n, M, N, BLOCKS, GATED, BIAS)


def tile(
    x_MK: Tensor, weight: Int4Weight, config: Int4Tile, fusion: Fusion = matmul.PLAIN, pdl: bool = False
) -> Tensor:
    """out [M, N] for a fusion without a norm."""
    assert x_MK.stride(1) == 1
    assert fusion.gain is None and fusion.before is None, "the norm is a launch of its own"
    m, k = x_MK.shape
    n = fusion.outputs(weight.tiles) * 16
    blocks, chunk = config.n // 16, config.k // 64
    tiles = triton.cdiv(m, config.m) * triton.cdiv(n * (2 if fusion.gated else 1), config.n)
    out = torch.empty((m, n), dtype=x_MK.dtype, device=x_MK.device)
    steps = triton.cdiv(triton.cdiv(k, config.k), config.split)
    split = triton.cdiv(triton.cdiv(k, config.k), steps)
    partial = counts = None
    if split > 1:
        assert tiles <= MOST_TILES
        partial = torch.empty(tiles * split * config.m * config.n, dtype=torch.float32, device=x_MK.device)
        counts = split_counters(x_MK.device)
    ahead = triton.next_power_of_2(max(1, min(steps * chunk, 16)))
    zero = weight.zero is not None
    tile_kernel[(tiles, split)](
        x_MK, weight.tiles, weight.scale, weight.zero, fusion.bias, out, partial, counts,
        m, n, k, weight.scale.shape[1], x_MK.stride(0), steps, split,
        TOKENS=config.m, BLOCKS=blocks, CHUNK=chunk, SPLIT=split > 1, EVEN=k % config.k == 0, GROUP=weight.group,
        GATED=fusion.gated, BIAS=fusion.bias is not None, ZERO=zero,
        CODE=codes(x_MK.dtype, low=True, scaled=True) if x_MK.is_cuda else None,
        PREFETCH=ahead if pdl and m <= 64 else 0, PDL=pdl, STAGES=config.stages, num_warps=config.warps,
        launch_pdl=pdl,
    )  # fmt: skip
    return out


# -- many tokens ------------------------------------------------------------------------------------------------


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
