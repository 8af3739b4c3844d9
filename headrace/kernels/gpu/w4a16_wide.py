"""Linear layers with 4-bit weights for tens to hundreds of tokens on compute capability 9.0, in Gluon.

As w4a16.py, with the weights as the tall operand, from registers: one warp fetches inputs and tiles of weights by TMA
into a ring, two groups of four warps unpack 64 rows each and multiply them with the same inputs by warp group
instructions, one unpacking while the other multiplies (the plan of Marlin: Frantar et al. 2024, "MARLIN:
Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models", section 3, for other matrix units).

The work is a line of steps, STEP columns of ROWS rows each, tile after tile, cut into equal shares for as many
programs as the device has multiprocessors (stream-K: Osama et al. 2023). Shares that end inside a tile leave their
sums in memory; who comes last at a tile adds them up in order.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from headrace.kernels import configs
from headrace.kernels.gpu.gluon import barrier, reinterpret
from headrace.kernels.gpu.product import MOST_TILES, split_counters
from headrace.kernels.w4a16 import Int4Weight

ROWS, STEP = 128, 128
RINGS = {16: 8, 32: 8, 64: 8, 128: 5}
"""Tokens of a tile -> steps in the ring: what a multiprocessor's memory holds."""


@gluon.jit
def share_of(tiles, steps, share):
    """(begin, end) of this program's part of the line."""
    begin = gl.program_id(0) * share
    return begin, gl.minimum(begin + share, tiles * steps)


@gluon.jit
def fetch(
    x_rows, weight_rows, steps, share, m_tiles, tiles, KB, x_s, w_s, ready, free,
    TOKENS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The part of the warp that fetches: inputs, and weights in 8 blocks of 16 rows."""
    begin, end = share_of(tiles, steps, share)
    for at in range(begin, end):
        tile, step = at // steps, at % steps
        turn = at - begin
        stage = turn % STAGES
        mbarrier.wait(free.index(stage), turn // STAGES & 1 ^ 1)
        mbarrier.expect(ready.index(stage), TOKENS * 256 + 8 * 1024)
        tma.async_copy_global_to_shared(
            x_rows, [tile % m_tiles * TOKENS, step * 128], ready.index(stage), x_s.index(stage)
        )
        for block in gl.static_range(8):
            row = ((tile // m_tiles * 8 + block) * KB + step * 2) * 4
            tma.async_copy_global_to_shared(
                weight_rows, [row, 0], ready.index(stage), w_s.index(stage * 8 + block)
            )


@gluon.jit
def load_groups(ptr, row_R, step, last, G, GROUP: gl.constexpr):
    """Scales or zero points of rows for both tiles of a step; of the last one from there on."""
    group = gl.minimum(step, last) * 128 // GROUP
    first_R = gl.load(ptr + row_R * G + group)
    if GROUP == 64:
        return first_R, gl.load(ptr + row_R * G + gl.minimum(group + 1, G - 1))
    else:
        return first_R, first_R


@gluon.jit
def spread(first_R, second_R, GROUP: gl.constexpr, numbers_l: gl.constexpr):
    """Over the 2 x 16 columns of a nibble: [64, 32]."""
    if GROUP == 64:
        column = gl.arange(0, 32, gl.SliceLayout(0, numbers_l))
        return gl.where((column < 16)[None, :], first_R[:, None], second_R[:, None])
    else:
        wide, _ = gl.broadcast(first_R[:, None], gl.zeros([64, 32], first_R.dtype, numbers_l))
        return wide


@gluon.jit
def numbers(w, low, scale, NIBBLE: gl.constexpr, CODE: gl.constexpr, DTYPE: gl.constexpr):
    """Nibbles of int16 w plus `low`, times their scales."""
    return gl.inline_asm_elementwise(
        CODE[NIBBLE], "=r,r,r,r", [w, low, scale], dtype=DTYPE.value, is_pure=True, pack=2
    )


@gluon.jit
def unpack(
    w_s, scale_R, more_R, zero_R, more_zero_R, numbers_l: gl.constexpr, operand_l: gl.constexpr,
    GROUP: gl.constexpr, ZERO: gl.constexpr, CODE: gl.constexpr, MAGIC: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """Weights [64, 128] of two tiles of four blocks, as the matrix units take them. Nothing changes threads.

    In shared memory [block 4, tile 2, lane 32, element 8]: see kernels/w4a16.py for the last two.
    """
    words_l: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [4, 0]],
        [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]],
        [[8, 0], [16, 0]],
        [],
        [32, 64],
    )
    # block, tile, row 4, row 2, pair, half, row 8, one of two
    w = w_s.load(words_l).reshape([4, 2, 4, 2, 4, 2, 2, 2])
    w = gl.convert_layout(w.permute([0, 6, 2, 3, 1, 5, 4, 7]).reshape([64, 32]), numbers_l)
    scale = spread(scale_R, more_R, GROUP, numbers_l).to(DTYPE)
    if ZERO:
        zero = spread(zero_R, more_zero_R, GROUP, numbers_l)
        low = (-8.0 - MAGIC - zero.to(gl.float32)).to(DTYPE)
    else:
        low = gl.full([64, 32], -8.0 - MAGIC, DTYPE, numbers_l)
    even = gl.join(numbers(w, low, scale, 0, CODE, DTYPE), numbers(w, low, scale, 2, CODE, DTYPE))
    odd = gl.join(numbers(w, low, scale, 1, CODE, DTYPE), numbers(w, low, scale, 3, CODE, DTYPE))
    both = gl.join(even, odd).reshape([64, 2, 16, 2, 2])  # row, tile, column, nibble 2, nibble 1
    return gl.convert_layout(both.permute([0, 1, 3, 4, 2]).reshape([64, 128]), operand_l)


@gluon.jit
def finish(acc, out_ptr, bias_ptr, row_R, m, M, N, BIAS: gl.constexpr):
    """Bias and store."""
    if BIAS:
        acc += gl.load(bias_ptr + row_R, mask=row_R < N, other=0.0).to(gl.float32)[:, None]
    where = m.to(gl.int64)[None, :] * N + row_R[:, None]
    there = gl.expand_dims(row_R < N, 1) & gl.expand_dims(m < M, 0)
    gl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=there)


@gluon.jit
def multiply(
    scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, G, steps, share, m_tiles, tiles,
    x_s, w_s, ready, free,
    WHO: gl.constexpr, TOKENS: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr,
    BIAS: gl.constexpr, CODE: gl.constexpr, MAGIC: gl.constexpr,
):  # fmt: skip
    """The part of a group of warps that computes: rows WHO * 64 and on of every tile of this program."""
    DTYPE: gl.constexpr = out_ptr.dtype.element_ty
    sums_l: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TOKENS, 16])
    operand_l: gl.constexpr = gl.DotOperandLayout(0, sums_l, 2)
    numbers_l: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [8, 0], [0, 8], [0, 16]],
        [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 32],
    )
    own_R = WHO * 64 + gl.arange(0, 64, gl.SliceLayout(1, numbers_l))
    own_M = WHO * 64 + gl.arange(0, 64, gl.SliceLayout(1, sums_l))
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, sums_l))
    inner = own_M[:, None] * TOKENS + token[None, :]
    begin, end = share_of(tiles, steps, share)
    turn = 0
    at = begin
    while at < end:
        tile, first = at // steps, at % steps
        last = gl.minimum(steps, first + end - at)
        row_R = gl.minimum(tile // m_tiles * 128 + own_R, N - 1)
        # What belongs to a step is asked for one step ahead.
        s, s_more = load_groups(scale_ptr, row_R, first, steps - 1, G, GROUP)
        z, z_more = s, s_more
        if ZERO:
            z, z_more = load_groups(zero_ptr, row_R, first, steps - 1, G, GROUP)
        acc = gl.zeros([64, TOKENS], gl.float32, sums_l)
        for step in range(first, last):
            stage = turn % STAGES
            mbarrier.wait(ready.index(stage), turn // STAGES & 1)
            weights = unpack(
                w_s.index(stage * 2 + WHO),
                s,
                s_more,
                z,
                z_more,
                numbers_l,
                operand_l,
                GROUP,
                ZERO,
                CODE,
                MAGIC,
                DTYPE,
            )
            acc = warpgroup_mma(weights, x_s.index(stage).permute((1, 0)), acc, is_async=True)
            s, s_more = load_groups(scale_ptr, row_R, step + 1, steps - 1, G, GROUP)
            if ZERO:
                z, z_more = load_groups(zero_ptr, row_R, step + 1, steps - 1, G, GROUP)
            acc = warpgroup_mma_wait(0, deps=[acc])
            barrier()
            mbarrier.arrive(free.index(stage), count=1)
            turn += 1
        row = tile // m_tiles * 128 + own_M
        m = tile % m_tiles * TOKENS + token
        if last - first == steps:
            finish(acc, out_ptr, bias_ptr, row, m, M, N, BIAS)
        else:
            # A program has two places: for the tile that it enters inside, and for the one that it leaves inside.
            place = gl.program_id(0) * 2 + gl.where(first == 0, 1, 0)
            gl.store(partial_ptr + place.to(gl.int64) * (128 * TOKENS) + inner, acc)
            barrier()  # every thread's sums are written before one thread says so
            one = tile * steps // share
            other = (tile * steps + steps - 1) // share
            ticket = gl.atomic_add(count_ptr + tile * 2 + WHO, 1, sem="acq_rel", scope="gpu")
            if ticket == other - one:
                total = gl.zeros([64, TOKENS], gl.float32, sums_l)
                for program in range(one, other + 1):
                    place = program * 2 + gl.where(program * share <= tile * steps, 1, 0)
                    part = partial_ptr + place.to(gl.int64) * (128 * TOKENS) + inner
                    total += gl.load(part, cache_modifier=".cg")
                gl.store(count_ptr + tile * 2 + WHO, 0)  # for the next launch
                finish(total, out_ptr, bias_ptr, row, m, M, N, BIAS)
        at += last - first


@gluon.jit(do_not_specialize=["M", "steps", "share", "m_tiles", "tiles"])
def wide_kernel(
    x_rows, weight_rows, scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr,
    M, N, KB, G, steps, share, m_tiles, tiles,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr, BIAS: gl.constexpr,
    CODE: gl.constexpr, MAGIC: gl.constexpr,
):  # fmt: skip
    """out [M, N] = x @ weight.T + bias."""
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    barrier_l: gl.constexpr = mbarrier.MBarrierLayout()
    x_s = gl.allocate_shared_memory(dtype, [STAGES, TOKENS, 128], layout)
    words_s = gl.allocate_shared_memory(gl.int16, [STAGES * 2, 32, 64], layout)
    w_s = reinterpret(words_s, gl.int16, [STAGES * 8, 8, 64], layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply, (
                scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, G, steps, share, m_tiles,
                tiles, x_s, words_s, ready, free, 0, TOKENS, STAGES, GROUP, ZERO, BIAS, CODE, MAGIC,
            )),
            (multiply, (
                scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, G, steps, share, m_tiles,
                tiles, x_s, words_s, ready, free, 1, TOKENS, STAGES, GROUP, ZERO, BIAS, CODE, MAGIC,
            )),
            (fetch, (
                x_rows, weight_rows, steps, share, m_tiles, tiles, KB, x_s, w_s, ready, free, TOKENS, STAGES,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def fits(x_MK: Tensor, weight: Int4Weight) -> bool:
    """Whether this kernel takes these: groups of whole tiles, inputs that TMA can read."""
    return (
        configs.capability(x_MK.device) == (9, 0)
        and weight.group % 64 == 0
        and x_MK.data_ptr() % 16 == 0
        and x_MK.stride(0) * x_MK.element_size() % 16 == 0
    )


def wide(x_MK: Tensor, weight: Int4Weight, bias_N: Tensor | None, codes: tuple[str, ...]) -> Tensor:
    """out [M, N], where `fits` says so. `codes`: how w4a16.py makes numbers of nibbles."""
    (m, k), n = x_MK.shape, weight.shape[0]
    tokens = next((most for most in RINGS if m <= most), max(RINGS))
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    words = weight.tiles.view(-1, 64)
    x_rows = TensorDescriptor(x_MK, [m, k], [x_MK.stride(0), 1], [tokens, STEP], layout)
    weight_rows = TensorDescriptor(words, list(words.shape), [64, 1], [8, 64], layout)
    m_tiles, steps = triton.cdiv(m, tokens), triton.cdiv(k, STEP)
    tiles = triton.cdiv(n, ROWS) * m_tiles
    share = triton.cdiv(tiles * steps, configs.multiprocessors(x_MK.device))
    programs = triton.cdiv(tiles * steps, share)
    assert tiles * 2 <= MOST_TILES
    out = torch.empty((m, n), dtype=x_MK.dtype, device=x_MK.device)
    partial = torch.empty(programs * 2 * ROWS * tokens, dtype=torch.float32, device=x_MK.device)
    wide_kernel[(programs,)](
        x_rows, weight_rows, weight.scale, weight.zero, bias_N, out, partial, split_counters(x_MK.device),
        m, n, k // 64, weight.scale.shape[1], steps, share, m_tiles, tiles,
        TOKENS=tokens, STAGES=RINGS[tokens], GROUP=weight.group, ZERO=weight.zero is not None,
        BIAS=bias_N is not None, CODE=codes, MAGIC=1024.0 if x_MK.dtype == torch.float16 else 128.0, num_warps=4,
    )  # fmt: skip
    return out
