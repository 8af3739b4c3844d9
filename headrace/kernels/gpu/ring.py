"""A few tokens times weights of 8 or 16 bits on compute capability 9.0, in Gluon: bound by the weights' bytes.

M tokens, N outputs, K inputs, both sides of one type. One warp fetches inputs and weights by TMA into a ring that fills
shared memory, so that a multiprocessor has more than 128 KB on their way; eight warps multiply them from there, weights
as the tall operand, and scale the sums of 8 bits at the end. The first ring of weights is asked for before inputs are
there, and registers are capped so that the launch before, which makes inputs, runs beside. A step is 128 bytes of each
row, whatever their type. How work is shared out: gluon.py.
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
from headrace.kernels.choices import Ring
from headrace.kernels.gpu.gluon import barrier, part_at, shares, work_of
from headrace.kernels.gpu.product import fits, split_counters, wait

BYTES = 128
"""Of a row that a step takes."""
MEMORY = 232_448
"""Bytes of a multiprocessor."""


@gluon.jit
def fetch_weights(
    weight_rows, n, step, stage, stride, second, w_s, ready,
    TOKENS: gl.constexpr, BLOCKS: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """Ask for a step's weights, and say how much comes with its inputs."""
    mbarrier.expect(ready.index(stage), (TOKENS + BLOCKS * 128) * 128)
    for block in gl.static_range(BLOCKS):
        tma.async_copy_global_to_shared(
            weight_rows, [n * stride + block * second, step * COLUMNS], ready.index(stage),
            w_s.index(stage * BLOCKS + block),
        )  # fmt: skip


@gluon.jit
def fetch(
    x_rows, weight_rows, steps, share, tiles, whole, m_tiles, n_tiles, stride, second, x_s, w_s, ready, free,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, BLOCKS: gl.constexpr, COLUMNS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The part of the warp that fetches. A ring of weights does not wait for the kernel before."""
    begin, total = work_of(steps, share, tiles, whole)
    early = gl.minimum(total, STAGES)
    turn = 0
    while turn < early:
        _, m, n, first, many = part_at(turn, whole, begin, steps, total, m_tiles, n_tiles)
        many = gl.minimum(many, early - turn)
        for step in range(first, first + many):
            fetch_weights(weight_rows, n, step, turn, stride, second, w_s, ready, TOKENS, BLOCKS, COLUMNS)
            turn += 1
    wait(PDL)
    turn = 0
    while turn < total:
        _, m, n, first, many = part_at(turn, whole, begin, steps, total, m_tiles, n_tiles)
        for step in range(first, first + many):
            stage = turn % STAGES
            if turn >= early:
                mbarrier.wait(free.index(stage), turn // STAGES & 1 ^ 1)
                fetch_weights(
                    weight_rows, n, step, stage, stride, second, w_s, ready, TOKENS, BLOCKS, COLUMNS
                )
            tma.async_copy_global_to_shared(
                x_rows, [m * TOKENS, step * COLUMNS], ready.index(stage), x_s.index(stage)
            )
            turn += 1


@gluon.jit
def store(acc, out_ptr, row, token, M, N):
    """Sums of 128 outputs, with as many in a thread as it writes at once."""
    tokens: gl.constexpr = acc.shape[1]
    rows_l: gl.constexpr = gl.BlockedLayout([8, 1], [16, 2], [1, 8], [0, 1])
    out = gl.convert_layout(acc.to(out_ptr.dtype.element_ty), rows_l)
    n = row + gl.arange(0, 128, gl.SliceLayout(1, rows_l))
    m = token + gl.arange(0, tokens, gl.SliceLayout(0, rows_l))
    where = m.to(gl.int64)[None, :] * N + n[:, None]
    gl.store(out_ptr + where, out, mask=gl.expand_dims(n < N, 1) & gl.expand_dims(m < M, 0))


@gluon.jit
def finished(
    acc, x_scale_ptr, scale_ptr, bias_ptr, m_M, row_R, M, rows, SCALED: gl.constexpr, BIAS: gl.constexpr
):  # fmt: skip
    """Sums [128, tokens] times both scales, where there are any, plus a number per row."""
    acc = acc.to(gl.float32)
    if SCALED:
        acc *= gl.load(x_scale_ptr + m_M, mask=m_M < M, other=0.0)[None, :]
        acc *= gl.load(scale_ptr + row_R, mask=row_R < rows, other=0.0).to(gl.float32)[:, None]
    if BIAS:
        acc += gl.load(bias_ptr + row_R, mask=row_R < rows, other=0.0).to(gl.float32)[:, None]
    return acc


@gluon.jit
def finish(
    low, high, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, row, token, own_R, own_M, M, N, rows, second,
    SCALED: gl.constexpr, BIAS: gl.constexpr, BLOCKS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Scales, bias, gate and store."""
    m_M, row_R = token + own_M, row + own_R
    low = finished(low, x_scale_ptr, scale_ptr, bias_ptr, m_M, row_R, M, rows, SCALED, BIAS)
    if BLOCKS == 2:
        high = finished(high, x_scale_ptr, scale_ptr, bias_ptr, m_M, second + row_R, M, rows, SCALED, BIAS)
    if GATED:
        # As the activation's own launch has it, which reads what 16 bits hold.
        DTYPE: gl.constexpr = out_ptr.dtype.element_ty
        gate = low.to(DTYPE).to(gl.float32)
        gate = (gate / (1.0 + gl.exp(-gate))).to(DTYPE).to(gl.float32)
        store(gate * high.to(DTYPE).to(gl.float32), out_ptr, row, token, M, N)
    else:
        store(low, out_ptr, row, token, M, N)
        if BLOCKS == 2:
            store(high, out_ptr, row + second, token, M, N)


@gluon.jit
def multiply(
    x_scale_ptr, scale_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, rows, steps, share, tiles, whole,
    m_tiles, n_tiles, stride, second, x_s, w_s, ready, free,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, BLOCKS: gl.constexpr, COLUMNS: gl.constexpr, SCALED: gl.constexpr,
    BIAS: gl.constexpr, GATED: gl.constexpr, AHEAD: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The part of the warps that compute."""
    kind: gl.constexpr = partial_ptr.dtype.element_ty
    sums_l: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, TOKENS, COLUMNS // 4])
    own_R = gl.arange(0, 128, gl.SliceLayout(1, sums_l))
    own_M = gl.arange(0, TOKENS, gl.SliceLayout(0, sums_l))
    # Sums in memory lie as threads have them.
    inner = (own_R // 8 * (8 * TOKENS) + own_R % 8 * 8)[:, None] + (own_M // 8 * 64 + own_M % 8)[None, :]
    PLACE: gl.constexpr = 128 * BLOCKS * TOKENS
    begin, total = work_of(steps, share, tiles, whole)
    wait(PDL)
    turn = 0
    while turn < total:
        line, m, n, first, many = part_at(turn, whole, begin, steps, total, m_tiles, n_tiles)
        low = gl.zeros([128, TOKENS], kind, sums_l)
        high = low
        if BLOCKS == 2:
            high = gl.zeros([128, TOKENS], kind, sums_l)
        for i in range(many):
            stage = turn % STAGES
            mbarrier.wait(ready.index(stage), turn // STAGES & 1)
            x = x_s.index(stage).permute((1, 0))
            low = warpgroup_mma(w_s.index(stage * BLOCKS), x, low, is_async=True)
            if BLOCKS == 2:
                high = warpgroup_mma(w_s.index(stage * 2 + 1), x, high, is_async=True)
                low, high = warpgroup_mma_wait(2, deps=[low, high])
            else:
                low = warpgroup_mma_wait(1, deps=[low])
            # While a step is multiplied the one before it is given back.
            barrier()
            mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1, pred=i > 0)
            turn += 1
        if BLOCKS == 2:
            low, high = warpgroup_mma_wait(0, deps=[low, high])
        else:
            low = warpgroup_mma_wait(0, deps=[low])
        barrier()
        mbarrier.arrive(free.index((turn + STAGES - 1) % STAGES), count=1)
        last = many == steps
        if not last:
            # A program has two places: for the tile that it enters inside, and for the one that it leaves inside.
            place = gl.program_id(0) * 2 + gl.where(first == 0, 1, 0)
            there = partial_ptr + place.to(gl.int64) * PLACE + inner
            gl.store(there, low)
            if BLOCKS == 2:
                gl.store(there + 128 * TOKENS, high)
            barrier()  # every thread's sums are written before one thread says so
            one = line * steps // share
            other = (line * steps + steps - 1) // share
            ticket = gl.atomic_add(count_ptr + line, 1, sem="acq_rel", scope="gpu")
            last = ticket == other - one
            if last:
                low = gl.zeros([128, TOKENS], kind, sums_l)
                high = low
                for program in range(one, other + 1, AHEAD):
                    for further in gl.static_range(AHEAD):
                        at = program + further
                        place = at * 2 + gl.where(at * share <= line * steps, 1, 0)
                        there = partial_ptr + place.to(gl.int64) * PLACE + inner
                        low += gl.load(there, mask=at <= other, other=0, cache_modifier=".cg")
                        if BLOCKS == 2:
                            high += gl.load(
                                there + 128 * TOKENS, mask=at <= other, other=0, cache_modifier=".cg"
                            )
                gl.store(count_ptr + line, 0)  # for the next launch
        if last:
            finish(
                low, high, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, n * stride, m * TOKENS, own_R, own_M, M, N,
                rows, second, SCALED, BIAS, BLOCKS, GATED,
            )  # fmt: skip


@gluon.jit(
    do_not_specialize=["M", "steps", "share", "tiles", "whole", "m_tiles", "n_tiles", "stride", "second"]
)
def ring_kernel(
    x_rows, weight_rows, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr,
    M, N, rows, steps, share, tiles, whole, m_tiles, n_tiles, stride, second,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, BLOCKS: gl.constexpr, SCALED: gl.constexpr, BIAS: gl.constexpr,
    GATED: gl.constexpr, AHEAD: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """out [M, N] = x @ weight.T + bias, times scales before the bias where SCALED, with its gate where GATED.

    A tile has BLOCKS times 128 rows: from `stride` * n on, and from `second` rows further.
    """
    dtype: gl.constexpr = x_rows.dtype
    bits: gl.constexpr = dtype.primitive_bitwidth
    COLUMNS: gl.constexpr = 1024 // bits
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2)
    barrier_l: gl.constexpr = mbarrier.MBarrierLayout()
    x_s = gl.allocate_shared_memory(dtype, [STAGES, TOKENS, COLUMNS], layout)
    w_s = gl.allocate_shared_memory(dtype, [STAGES * BLOCKS, 128, COLUMNS], layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply, (
                x_scale_ptr, scale_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, rows, steps, share, tiles,
                whole, m_tiles, n_tiles, stride, second, x_s, w_s, ready, free,
                TOKENS, STAGES, BLOCKS, COLUMNS, SCALED, BIAS, GATED, AHEAD, PDL,
            )),
            (fetch, (
                x_rows, weight_rows, steps, share, tiles, whole, m_tiles, n_tiles, stride, second, x_s, w_s, ready,
                free, TOKENS, STAGES, BLOCKS, COLUMNS, PDL,
            )),
        ],
        [1],
        [40],
    )  # fmt: skip


def ring(
    x: Tensor, weight: Tensor, config: Ring, bias: Tensor | None, out_dtype: torch.dtype, pdl: bool = False,
    gated: bool = False, scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """[M, N], `gated` [M, N / 2], of x [M, K] and weight [N, K] of one type.

    `scales` of 8 bits: of inputs, float32 [M], and of weights, [N] or [N, 1].
    """
    (m, k), rows, tokens, size = x.shape, weight.shape[0], config.tokens, weight.element_size()
    assert x.stride(1) == 1 and weight.is_contiguous()
    assert fits(x, weight), "TMA reads rows that begin at multiples of 16 bytes"
    assert not gated or config.rows == 256, "gate and up are halves of one tile"
    n = rows // 2 if gated else rows
    stride = 128 if gated else config.rows
    columns = BYTES // size
    layout = gl.NVMMASharedLayout(swizzle_byte_width=BYTES, element_bitwidth=8 * size, rank=2)
    m_tiles, n_tiles, steps = triton.cdiv(m, tokens), triton.cdiv(n, stride), triton.cdiv(k, columns)
    most = configs.multiprocessors(x.device)
    programs, whole, share = shares(m_tiles * n_tiles, steps, most, config.parts)
    out = torch.empty((m, n), dtype=out_dtype, device=x.device)
    kind = torch.int32 if weight.dtype == torch.int8 else torch.float32
    partial = torch.empty(programs * 2 * config.rows * tokens, dtype=kind, device=x.device)
    x_scale, scale = (None, None) if scales is None else (scales[0].contiguous(), scales[1].contiguous())
    sums = config.rows * tokens // 256  # registers of a thread
    ring_kernel[(programs,)](
        TensorDescriptor(x, [m, k], [x.stride(0), 1], [tokens, columns], layout),
        TensorDescriptor(weight, [rows, k], [k, 1], [128, columns], layout),
        x_scale, scale, bias, out, partial, split_counters(x.device),
        m, n, rows, steps, share, m_tiles * n_tiles, whole, m_tiles, n_tiles, stride, n if gated else 128,
        TOKENS=tokens, STAGES=stages(config, out_dtype.itemsize), BLOCKS=config.rows // 128, SCALED=scales is not None,
        BIAS=bias is not None, GATED=gated, AHEAD=max(1, min(4, 64 // sums)), PDL=pdl, num_warps=8, launch_pdl=pdl,
        maxnreg=registers(config, size),
    )  # fmt: skip
    return out


def stages(config: Ring, size: int) -> int:
    """Steps that the ring holds beside outputs of `size` bytes that change threads, and a launch before."""
    rest = 33 * 1024 if size == 4 else 16 * 1024
    return (MEMORY - rest) // ((config.tokens + config.rows) * BYTES)


def registers(config: Ring, size: int) -> int:
    """Of a thread, on average over warps that compute and those that do not; `size`: bytes of a weight."""
    sums = config.rows * config.tokens // 256
    few = 80 if size == 1 else 88
    return few if sums <= 32 else 104 if sums <= 64 else 168
