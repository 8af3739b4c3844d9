"""Linear layers with 4-bit weights for tens of tokens in Triton: tiles unpacked in registers, as w4a16.py has them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.choices import Int4Tile
from headrace.kernels.gpu import matmul
from headrace.kernels.gpu.product import MOST_TILES, Fusion, ask_for_lines, split_counters, wait
from headrace.kernels.gpu.w4a16_numbers import codes, low_of, magic, scaled_numbers
from headrace.kernels.w4a16 import Int4Weight


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
