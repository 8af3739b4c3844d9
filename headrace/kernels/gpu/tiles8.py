"""Several tokens times 8-bit weights in Triton: tiles by TMA through the matrix units, scales at the end.

M tokens, N outputs, K inputs, all in 8 bits. A scale belongs to a row of either, or to 128 inputs of a token and to
128 x 128 weights ("blocked"): then sums are scaled after every 128 inputs. Up to 64 tokens the weights are the tall
side of a product, of which the matrix units take 64 rows at least; tokens, the narrow one, are padded to 16 only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headrace.kernels import configs
from headrace.kernels.choices import Skinny, Wide
from headrace.kernels.gpu.gemv8 import ask_for
from headrace.kernels.gpu.product import MOST_TILES, place, split_counters, wait

GROUP = tl.constexpr(128)
PREFETCHED = 4096
"""Bytes of a row that are asked for at most before the inputs are there."""


@triton.jit
def store_scaled(
    acc, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, m, n, M, N,
    FLAT: tl.constexpr, BLOCKED: tl.constexpr, BIAS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Scale sums, add the bias, store. Sums are [m, n], or [n, m] where FLAT."""
    acc = acc.to(tl.float32)
    a: tl.constexpr = 1 if FLAT else 0  # the axis of tokens
    b: tl.constexpr = 0 if FLAT else 1
    if not BLOCKED:
        if not WIDEN:
            acc = acc * tl.expand_dims(tl.load(x_scale_ptr + m, mask=m < M, other=0.0), b)
        acc = acc * tl.expand_dims(tl.load(scale_ptr + n, mask=n < N, other=0.0).to(tl.float32), a)
    if BIAS:
        acc += tl.expand_dims(tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32), a)
    where = tl.expand_dims(m.to(tl.int64) * N, b) + tl.expand_dims(n, a)
    live = tl.expand_dims(m < M, b) & tl.expand_dims(n < N, a)
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M"])
def skinny8_kernel(
    x_tiles, weight_tiles, weight_ptr, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr,
    M, N, K, steps, split,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, BLOCKED: tl.constexpr,
    BIAS: tl.constexpr, WHOLE: tl.constexpr, WIDEN: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """out [M, N] for M of at most BLOCK_M tokens; inputs are cut as in matmul.py's skinny_kernel.

    With WIDEN inputs are not rounded, and weights are brought to their type.
    """
    pid, part = tl.program_id(0), tl.program_id(1)
    kind: tl.constexpr = tl.int32 if WHOLE else tl.float32
    first = pid * TILE
    n = first + tl.arange(0, TILE)
    if PREFETCH > 0:
        begin = part * steps * BLOCK_K
        ask_for(weight_ptr + n[:, None] * 0 + begin, n, n < N, K, PREFETCH, 128)
    wait(PDL)
    m = tl.arange(0, BLOCK_M)
    acc = tl.zeros([TILE, BLOCK_M], kind)
    for step in tl.range(
        part * steps, tl.minimum(part * steps + steps, tl.cdiv(K, BLOCK_K)), num_stages=STAGES
    ):
        w = weight_tiles.load([first, step * BLOCK_K])
        x = x_tiles.load([0, step * BLOCK_K]).T
        if BLOCKED:
            groups = tl.cdiv(K, GROUP)
            x_scale = tl.load(x_scale_ptr + m * groups + step, mask=m < M, other=0.0)
            scale = tl.load(scale_ptr + first // GROUP * groups + step).to(tl.float32)
            acc += tl.dot(w, x) * (x_scale * scale)[None, :]
        elif WIDEN:
            acc = tl.dot(w.to(x.dtype), x, acc)
        else:
            acc = tl.dot(w, x, acc, out_dtype=kind)
    if not SPLIT:
        store_scaled(acc, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, m, n, M, N, True, BLOCKED, BIAS, WIDEN)
    else:
        inner = tl.arange(0, TILE)[:, None] * BLOCK_M + m[None, :]
        slab = partial_ptr + pid.to(tl.int64) * (split * BLOCK_M * TILE)
        tl.store(slab + part * (BLOCK_M * TILE) + inner, acc)
        tl.debug_barrier()  # every thread's sums are written before one thread says so
        ticket = tl.atomic_add(count_ptr + pid, 1, sem="acq_rel", scope="gpu")
        if ticket == split - 1:
            total = tl.zeros([TILE, BLOCK_M], kind)
            for s in tl.range(split, num_stages=1):
                total += tl.load(slab + s * (BLOCK_M * TILE) + inner, cache_modifier=".cg")
            tl.store(count_ptr + pid, 0)  # ready for the next launch
            store_scaled(
                total, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, m, n, M, N, True, BLOCKED, BIAS, WIDEN
            )


@triton.jit(do_not_specialize=["M"])
def wide8_kernel(
    x_tiles, weight_tiles, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, M, N, K,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCKED: tl.constexpr, BIAS: tl.constexpr,
    WHOLE: tl.constexpr, PDL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out [M, N] by programs that each take every so manyth tile."""
    kind: tl.constexpr = tl.int32 if WHOLE else tl.float32
    m_tiles, n_tiles, steps = tl.cdiv(M, BLOCK_M), tl.cdiv(N, WIDTH), tl.cdiv(K, BLOCK_K)
    wait(PDL)
    for tile in tl.range(tl.program_id(0), m_tiles * n_tiles, tl.num_programs(0)):
        at_m, at_n = place(tile, m_tiles, n_tiles)
        m, n = at_m * BLOCK_M + tl.arange(0, BLOCK_M), at_n * WIDTH + tl.arange(0, WIDTH)
        acc = tl.zeros([BLOCK_M, WIDTH], kind)
        for step in tl.range(steps, num_stages=STAGES):
            x = x_tiles.load([at_m * BLOCK_M, step * BLOCK_K])
            w = weight_tiles.load([at_n * WIDTH, step * BLOCK_K]).T
            if BLOCKED:
                x_scale = tl.load(x_scale_ptr + m.to(tl.int64) * steps + step, mask=m < M, other=0.0)
                scale = tl.load(scale_ptr + at_n * WIDTH // GROUP * steps + step).to(tl.float32)
                acc += tl.dot(x, w) * (x_scale * scale)[:, None]
            else:
                acc = tl.dot(x, w, acc, out_dtype=kind)
        store_scaled(acc, x_scale_ptr, scale_ptr, bias_ptr, out_ptr, m, n, M, N, False, BLOCKED, BIAS, False)


def narrow(tokens: int) -> int:
    """To how many tokens skinny8 pads: of 8, Triton 3.6 makes no warpgroup product."""
    return 16 if tokens <= 16 else 32 if tokens <= 32 else 64


def _checked(values: Tensor, weight: Tensor, scale: Tensor, blocked: bool, tile: int, block_k: int) -> None:
    assert values.is_contiguous() and weight.is_contiguous() and scale.is_contiguous()
    assert not blocked or (block_k == GROUP.value and GROUP.value % tile == 0), "a tile has one scale"
    assert weight.shape[1] % 16 == 0, "TMA reads rows that begin at multiples of 16 bytes"


def skinny8(
    values: Tensor, x_scale: Tensor | None, weight: Tensor, scale: Tensor, config: Skinny,
    bias: Tensor | None = None, out_dtype: torch.dtype = torch.bfloat16, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """[M, N] for up to 64 tokens; scales by row [M] and [N] or [N, 1], or blocked [M, K / 128] and [N / 128, K / 128].

    Without x_scale values are no 8-bit ones but what they stand for, in 16 bits.
    """
    (m, k), n = values.shape, weight.shape[0]
    blocked = x_scale is not None and x_scale.dim() == 2
    _checked(values, weight, scale, blocked, config.n, config.k)
    block_m, tiles = narrow(m), triton.cdiv(n, config.n)
    assert m <= 64
    out = torch.empty((m, n), dtype=out_dtype, device=values.device)
    whole = weight.dtype == torch.int8 and x_scale is not None
    steps = triton.cdiv(triton.cdiv(k, config.k), config.split)
    split = triton.cdiv(triton.cdiv(k, config.k), steps)
    partial = counts = None
    if split > 1:
        assert tiles <= MOST_TILES
        kind = torch.int32 if whole else torch.float32
        partial = torch.empty(tiles * split * block_m * config.n, dtype=kind, device=values.device)
        counts = split_counters(values.device)
    lines = triton.next_power_of_2(min(steps * config.k, PREFETCHED) // 128)
    skinny8_kernel[(tiles, split)](
        TensorDescriptor(values, [m, k], [k, 1], [block_m, config.k]),
        TensorDescriptor(weight, [n, k], [k, 1], [config.n, config.k]),
        weight.view(torch.uint8), x_scale, scale, bias, out, partial, counts, m, n, k, steps, split,
        BLOCK_M=block_m, TILE=config.n, BLOCK_K=config.k, SPLIT=split > 1, BLOCKED=blocked, BIAS=bias is not None,
        WHOLE=whole, WIDEN=x_scale is None, PREFETCH=lines if pdl else 0, PDL=pdl, STAGES=config.stages,
        num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out


def wide8(
    values: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, config: Wide, bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16, pdl: bool = False, programs: int = 0,
) -> Tensor:  # fmt: skip
    """As skinny8 for any number of tokens; `programs` in all, 0: as many as the device runs at once."""
    (m, k), n = values.shape, weight.shape[0]
    blocked = x_scale.dim() == 2
    _checked(values, weight, scale, blocked, config.n, config.k)
    out = torch.empty((m, n), dtype=out_dtype, device=values.device)
    tiles = triton.cdiv(m, config.m) * triton.cdiv(n, config.n)
    programs = programs or configs.multiprocessors(values.device) * config.programs
    wide8_kernel[(min(tiles, programs),)](
        TensorDescriptor(values, [m, k], [k, 1], [config.m, config.k]),
        TensorDescriptor(weight, [n, k], [k, 1], [config.n, config.k]),
        x_scale, scale, bias, out, m, n, k,
        BLOCK_M=config.m, WIDTH=config.n, BLOCK_K=config.k, BLOCKED=blocked, BIAS=bias is not None,
        WHOLE=weight.dtype == torch.int8, PDL=pdl, STAGES=config.stages, num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out
