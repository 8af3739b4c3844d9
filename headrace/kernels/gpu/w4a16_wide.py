"""Linear layers with 4-bit weights for tens to thousands of tokens on compute capability 9.0, in Gluon.

As w4a16.py, with the weights as the tall operand, from registers: one warp fetches inputs and tiles of weights by TMA
into a ring, two groups of four warps unpack 64 rows each and multiply them with the same inputs by warp group
instructions (the plan of Marlin: Frantar et al. 2024, "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on
Large Language Models", section 3, for other matrix units). While one group waits for its products others unpack: of up
to 64 tokens two programs share a multiprocessor. Groups that unpack the next rows while their last are multiplied were
slower up to 128 tokens and no faster beyond: they must keep both, and copy one to the other.
With 256 rows a tile, two blocks of 64 for each group, inputs come from L2 half as often, a group unpacks the second
while the first is multiplied, and the two may be gate and up of the same outputs. With 256 tokens a tile weights are
unpacked half as often. How work is shared out: gluon.py.
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
from headrace.kernels.activation import silu_mul
from headrace.kernels.choices import Int4Wide
from headrace.kernels.gpu.gluon import barrier, part_at, reinterpret, shares, work_of
from headrace.kernels.gpu.product import split_counters, wait
from headrace.kernels.gpu.w4a16_numbers import codes
from headrace.kernels.gpu.w4a16_operand import load_groups, unpack
from headrace.kernels.launch import parts_of
from headrace.kernels.w4a16 import Int4Weight

STEP = 128
MEMORY = 232_448 - 8192
"""Bytes of a multiprocessor for the ring and for outputs that change threads."""
REGISTERS = {1: (168, 240), 2: (80, 104)}
"""By programs on a multiprocessor: of a thread at launch, and of one that computes."""
SUMMED = 32
"""The most tokens whose sums are scaled at every step, not the weights."""


@gluon.jit
def fetch_weights(
    weight_rows, n, step, stage, second, stride, w_s, ready,
    TOKENS: gl.constexpr, BLOCKS: gl.constexpr,
):  # fmt: skip
    """Ask for a step's weights, and say how much comes with its inputs."""
    mbarrier.expect(ready.index(stage), TOKENS * 256 + BLOCKS * 8192)
    for block in gl.static_range(BLOCKS):
        tma.async_copy_global_to_shared(
            weight_rows, [n * stride + block * second, step * 8, 0], ready.index(stage),
            w_s.index(stage * BLOCKS + block),
        )  # fmt: skip


@gluon.jit
def fetch(
    x_rows, weight_rows, steps, share, tiles, whole, m_tiles, n_tiles, second, stride, x_s, w_s, ready, free,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, BLOCKS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The part of the warp that fetches. The first weights do not wait for the kernel before."""
    begin, total = work_of(steps, share, tiles, whole)
    _, m, n, first, many = part_at(0, whole, begin, steps, total, m_tiles, n_tiles)
    early = gl.minimum(many, STAGES)
    for turn in range(early):
        fetch_weights(weight_rows, n, first + turn, turn, second, stride, w_s, ready, TOKENS, BLOCKS)
    wait(PDL)
    turn = 0
    while turn < total:
        for step in range(first, first + many):
            stage = turn % STAGES
            if turn >= early:
                mbarrier.wait(free.index(stage), turn // STAGES & 1 ^ 1)
                fetch_weights(weight_rows, n, step, stage, second, stride, w_s, ready, TOKENS, BLOCKS)
            tma.async_copy_global_to_shared(
                x_rows, [m * TOKENS, step * 128], ready.index(stage), x_s.index(stage)
            )
            turn += 1
        if turn < total:
            _, m, n, first, many = part_at(turn, whole, begin, steps, total, m_tiles, n_tiles)


@gluon.jit
def with_bias(acc, bias_ptr, row_R, rows, beyond, BIAS: gl.constexpr):
    """acc [rows, tokens] plus a number per row, `beyond` rows further on."""
    if BIAS:
        acc += gl.load(bias_ptr + beyond + row_R, mask=row_R < rows, other=0.0).to(gl.float32)[:, None]
    return acc


@gluon.jit
def store(acc, out_ptr, row, token, M, N):
    """Sums of 64 outputs, with as many in a thread as it writes at once."""
    tokens: gl.constexpr = acc.shape[1]
    rows_l: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1])
    out = gl.convert_layout(acc.to(out_ptr.dtype.element_ty), rows_l)
    n = row + gl.arange(0, 64, gl.SliceLayout(1, rows_l))
    m = token + gl.arange(0, tokens, gl.SliceLayout(0, rows_l))
    where = m.to(gl.int64)[None, :] * N + n[:, None]
    gl.store(out_ptr + where, out, mask=gl.expand_dims(n < N, 1) & gl.expand_dims(m < M, 0))


@gluon.jit
def finish(
    low, high, out_ptr, bias_ptr, row_M, row, token, M, N, second,
    BIAS: gl.constexpr, BLOCKS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Bias, gate and store."""
    low = with_bias(low, bias_ptr, row_M, N, 0, BIAS)
    if BLOCKS == 2:
        high = with_bias(high, bias_ptr, row_M, N if GATED else N - second, second, BIAS)
    if GATED:
        store(low / (1.0 + gl.exp(-low)) * high, out_ptr, row, token, M, N)
    else:
        store(low, out_ptr, row, token, M, N)
        if BLOCKS == 2:
            store(high, out_ptr, row + second, token, M, N)


@gluon.jit
def add(
    sums, w_s, x, scale_ptr, zero_ptr, row_S, row_R, s, s_more, z, z_more, step, last, G,
    numbers_l: gl.constexpr, operand_l: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr,
    SUMMED: gl.constexpr, LATER: gl.constexpr, CODE: gl.constexpr, MAGIC: gl.constexpr,
):  # fmt: skip
    """Sums of 64 rows with a step's products, to be waited for if LATER; and what belongs to the step after.

    Where SUMMED, a step's own sums are scaled: of few tokens they are fewer than weights.
    """
    DTYPE: gl.constexpr = x.dtype
    weights = unpack(w_s, s, s_more, z, z_more, numbers_l, operand_l, GROUP, ZERO, CODE, MAGIC, DTYPE, SUMMED)
    if SUMMED:
        new = warpgroup_mma(weights, x, gl.zeros_like(sums), use_acc=False, is_async=True)
    else:
        sums = warpgroup_mma(weights, x, sums, is_async=True)
    after, after_more = load_groups(scale_ptr, row_S, step + 1, last, G, GROUP)
    if ZERO:
        z, z_more = load_groups(zero_ptr, row_R, step + 1, last, G, GROUP)
    if SUMMED:
        new = warpgroup_mma_wait(0, deps=[new])
        sums += new * s.to(gl.float32)[:, None]
    elif not LATER:
        sums = warpgroup_mma_wait(0, deps=[sums])
    return sums, after, after_more, z, z_more


@gluon.jit
def keep_order(ready, turn, STAGES: gl.constexpr):
    """A wait for what has come: the assembler moves neither products nor unpacking beyond it, as it else does."""
    mbarrier.wait(ready.index(turn % STAGES), turn // STAGES & 1)


@gluon.jit
def add_up(
    low, high, partial_ptr, count_ptr, line, first, steps, share, inner, out_ptr, bias_ptr, own_M, row, token,
    M, N, second, WHO: gl.constexpr, BIAS: gl.constexpr, BLOCKS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Leave sums of a part of a tile in memory, at `inner` of its place, as threads have them.

    Who comes last adds up those of all parts, in their order, and stores the tile.
    """
    TOKENS: gl.constexpr = low.shape[1]
    place_size: gl.constexpr = 128 * BLOCKS * TOKENS
    # A program has two places: for the tile that it enters inside, and for the one that it leaves inside.
    place = gl.program_id(0) * 2 + gl.where(first == 0, 1, 0)
    there = partial_ptr + place.to(gl.int64) * place_size + inner
    gl.store(there, low)
    if BLOCKS == 2:
        gl.store(there + 64 * TOKENS, high)
    barrier()  # every thread's sums are written before one thread says so
    one = line * steps // share
    other = (line * steps + steps - 1) // share
    ticket = gl.atomic_add(count_ptr + line * 2 + WHO, 1, sem="acq_rel", scope="gpu")
    if ticket == other - one:
        low = gl.zeros_like(low)
        high = low
        for program in range(one, other + 1):
            place = program * 2 + gl.where(program * share <= line * steps, 1, 0)
            there = partial_ptr + place.to(gl.int64) * place_size + inner
            low += gl.load(there, cache_modifier=".cg")
            if BLOCKS == 2:
                high += gl.load(there + 64 * TOKENS, cache_modifier=".cg")
        gl.store(count_ptr + line * 2 + WHO, 0)  # for the next launch
        finish(low, high, out_ptr, bias_ptr, row + own_M, row, token, M, N, second, BIAS, BLOCKS, GATED)


@gluon.jit
def multiply(
    scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, rows, G, steps, share, tiles, whole, m_tiles,
    n_tiles, second, stride, x_s, w_s, ready, free,
    WHO: gl.constexpr, TOKENS: gl.constexpr, STAGES: gl.constexpr, BLOCKS: gl.constexpr, GROUP: gl.constexpr,
    ZERO: gl.constexpr, SUMMED: gl.constexpr, BIAS: gl.constexpr, GATED: gl.constexpr, CODE: gl.constexpr,
    MAGIC: gl.constexpr,
):  # fmt: skip
    """The part of a group of warps that computes: 64 rows of every 128 of this program's tiles."""
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
    own_M = gl.arange(0, 64, gl.SliceLayout(1, sums_l))
    own_S = WHO * 64 + own_M if SUMMED else own_R
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, sums_l))
    # Sums in memory lie as threads have them.
    inner = (own_M // 8 * (8 * TOKENS) + own_M % 8 * 8)[:, None] + (token // 8 * 64 + token % 8)[None, :]
    inner += WHO * BLOCKS * 64 * TOKENS
    begin, total = work_of(steps, share, tiles, whole)
    turn = 0
    while turn < total:
        line, m, n, first, many = part_at(turn, whole, begin, steps, total, m_tiles, n_tiles)
        # What belongs to a step is asked for one step ahead.
        row_S = gl.minimum(n * stride * 16 + own_S, rows - 1)
        row_R = gl.minimum(n * stride * 16 + own_R, rows - 1)
        s, s_more = load_groups(scale_ptr, row_S, first, steps - 1, G, GROUP)
        z, z_more = s, s_more
        if ZERO:
            z, z_more = load_groups(zero_ptr, row_R, first, steps - 1, G, GROUP)
        low = gl.zeros([64, TOKENS], gl.float32, sums_l)
        high = low
        if BLOCKS == 2:
            more_R = gl.minimum(n * stride * 16 + second * 16 + own_R, rows - 1)
            s2, s2_more = load_groups(scale_ptr, more_R, first, steps - 1, G, GROUP)
            z2, z2_more = s2, s2_more
            if ZERO:
                z2, z2_more = load_groups(zero_ptr, more_R, first, steps - 1, G, GROUP)
        for step in range(first, first + many):
            stage = turn % STAGES
            mbarrier.wait(ready.index(stage), turn // STAGES & 1)
            x = x_s.index(stage).permute((1, 0))
            low, s, s_more, z, z_more = add(
                low, w_s.index(stage * 2 * BLOCKS + WHO), x, scale_ptr, zero_ptr, row_S, row_R, s, s_more, z, z_more,
                step, steps - 1, G, numbers_l, operand_l, GROUP, ZERO, SUMMED, BLOCKS == 2, CODE, MAGIC,
            )  # fmt: skip
            if BLOCKS == 2:
                keep_order(ready, turn, STAGES)
                high, s2, s2_more, z2, z2_more = add(
                    high, w_s.index(stage * 4 + 2 + WHO), x, scale_ptr, zero_ptr, more_R, more_R, s2, s2_more, z2,
                    z2_more, step, steps - 1, G, numbers_l, operand_l, GROUP, ZERO, SUMMED, True, CODE, MAGIC,
                )  # fmt: skip
                low, high = warpgroup_mma_wait(0, deps=[low, high])
            barrier()
            mbarrier.arrive(free.index(stage), count=1)
            turn += 1
        row = n * stride * 16 + WHO * 64
        if many == steps:
            finish(
                low, high, out_ptr, bias_ptr, row + own_M, row, m * TOKENS, M, N, second * 16, BIAS, BLOCKS, GATED,
            )  # fmt: skip
        else:
            add_up(
                low, high, partial_ptr, count_ptr, line, first, steps, share, inner, out_ptr, bias_ptr, own_M, row,
                m * TOKENS, M, N, second * 16, WHO, BIAS, BLOCKS, GATED,
            )  # fmt: skip


@gluon.jit(
    do_not_specialize=["M", "G", "steps", "share", "tiles", "whole", "m_tiles", "n_tiles", "second", "stride"]
)
def wide_kernel(
    x_rows, weight_rows, scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr,
    M, N, rows, G, steps, share, tiles, whole, m_tiles, n_tiles, second, stride,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, BLOCKS: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr,
    SUMMED: gl.constexpr, BIAS: gl.constexpr, GATED: gl.constexpr, CODE: gl.constexpr, MAGIC: gl.constexpr,
    REGISTERS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """out [M, N] = x @ weight.T + bias, with its gate where GATED.

    A tile has BLOCKS times 128 rows: from `stride` * n on, and from `second` rows further, both in blocks of 16.
    """
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    blocks_l: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    barrier_l: gl.constexpr = mbarrier.MBarrierLayout()
    x_s = gl.allocate_shared_memory(dtype, [STAGES, TOKENS, 128], layout)
    words_s = gl.allocate_shared_memory(gl.int16, [STAGES * 2 * BLOCKS, 32, 64], layout)
    w_s = reinterpret(words_s, gl.int16, [STAGES * BLOCKS, 8, 8, 64], blocks_l)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply, (
                scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, rows, G, steps, share, tiles,
                whole, m_tiles, n_tiles, second, stride, x_s, words_s, ready, free,
                0, TOKENS, STAGES, BLOCKS, GROUP, ZERO, SUMMED, BIAS, GATED, CODE, MAGIC,
            )),
            (multiply, (
                scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, rows, G, steps, share, tiles,
                whole, m_tiles, n_tiles, second, stride, x_s, words_s, ready, free,
                1, TOKENS, STAGES, BLOCKS, GROUP, ZERO, SUMMED, BIAS, GATED, CODE, MAGIC,
            )),
            (fetch, (
                x_rows, weight_rows, steps, share, tiles, whole, m_tiles, n_tiles, second, stride, x_s, w_s, ready,
                free, TOKENS, STAGES, BLOCKS, PDL,
            )),
        ],
        [4, 1],
        [REGISTERS, 24],
    )  # fmt: skip


def fits(x_MK: Tensor, weight: Int4Weight) -> bool:
    """Whether this kernel takes these: groups of whole tiles, inputs that TMA can read."""
    return (
        configs.capability(x_MK.device) == (9, 0)
        and weight.group % 64 == 0
        and x_MK.data_ptr() % 16 == 0
        and x_MK.stride(0) * x_MK.element_size() % 16 == 0
    )


def wide(
    x_MK: Tensor, weight: Int4Weight, bias_N: Tensor | None, gated: bool, config: Int4Wide, pdl: bool = False
) -> Tensor:  # fmt: skip
    """out [M, N], where `fits` says so."""
    (m, k), rows, (height, tokens) = x_MK.shape, weight.shape[0], (config.rows, config.tokens)
    joint = gated and height == 256  # gate and up in one tile
    n = rows // 2 if joint else rows
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    blocks = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    words = weight.tiles.view(rows // 16, -1, 64)
    x_rows = TensorDescriptor(x_MK, [m, k], [x_MK.stride(0), 1], [tokens, STEP], layout)
    weight_rows = TensorDescriptor(words, list(words.shape), list(words.stride()), [8, 8, 64], blocks)
    m_tiles, n_tiles = triton.cdiv(m, tokens), triton.cdiv(n, 128 if joint else height)
    steps = triton.cdiv(k, STEP)
    beside = programs_of(config)
    summed = beside == 2 and tokens <= SUMMED and weight.group % STEP == 0
    most, tiles = configs.multiprocessors(x_MK.device) * beside, m_tiles * n_tiles
    programs, whole, share = shares(tiles, steps, most, parts_of(tiles, steps, 8, most))
    out = torch.empty((m, n), dtype=x_MK.dtype, device=x_MK.device)
    partial = torch.empty(programs * 2 * height * tokens, dtype=torch.float32, device=x_MK.device)
    wide_kernel[(programs,)](
        x_rows, weight_rows, weight.scale, weight.zero, bias_N, out, partial, split_counters(x_MK.device),
        m, n, rows, weight.scale.shape[1], steps, share, tiles, whole, m_tiles, n_tiles,
        n // 16 if joint else 8, 8 if joint else height // 16,
        TOKENS=tokens, STAGES=stages(config), BLOCKS=height // 128, GROUP=weight.group, ZERO=weight.zero is not None,
        SUMMED=summed, BIAS=bias_N is not None, GATED=joint,
        CODE=codes(x_MK.dtype, low=True, scaled=not summed), MAGIC=1024.0 if x_MK.dtype == torch.float16 else 128.0,
        REGISTERS=REGISTERS[beside][1], PDL=pdl, num_warps=4, maxnreg=REGISTERS[beside][0], launch_pdl=pdl,
    )  # fmt: skip
    return silu_mul(out) if gated and not joint else out


def programs_of(config: Int4Wide) -> int:
    """How many programs share a multiprocessor."""
    return 2 if config.rows == 128 and config.tokens <= 64 else 1


def stages(config: Int4Wide) -> int:
    """Steps that the ring holds."""
    return min(8, MEMORY // programs_of(config) // (config.tokens * 256 + config.rows * 64))
