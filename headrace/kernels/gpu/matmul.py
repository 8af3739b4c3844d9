"""Linear layers for few tokens in Triton: bound by the weights' bytes, fused with what surrounds them.

M tokens, N outputs, K inputs. Where gate and up are computed together ("gated") the weight is [2N, K], gate
first; a tile interleaves their rows (gate 0, up 0, gate 1, ...) so that a pair meets in one thread.
Weights depend on no kernel before, so under programmatic dependent launch they are requested before the wait.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from headrace.kernels import configs, rules
from headrace.kernels.choices import Blas, Gemv, Ring, Skinny, Wide
from headrace.kernels.gpu import blas
from headrace.kernels.gpu.activation import gated
from headrace.kernels.gpu.norm import normalize
from headrace.kernels.gpu.product import (
    MOST_TILES,
    PLAIN,
    Fusion,
    ask_for_lines,
    fits,
    multiply,
    split_counters,
    wait,
)
from headrace.kernels.launch import TENSOR_CORE_TYPES, rows_of

LANES = tl.constexpr(8)


@triton.jit
def weight_rows(first, TILE: tl.constexpr, N, K, GATED: tl.constexpr):
    """Offsets [TILE] of the tile's weight rows and the outputs [TILE] they belong to."""
    j = tl.arange(0, TILE)
    if GATED:
        n = first + j // 2
        row = n + (j % 2) * N
    else:
        n = first + j
        row = n
    return row.to(tl.int64) * K, n


@triton.jit
def load_tile(weight_ptr, rows, k, live, K, EVEN: tl.constexpr):
    """Weights [TILE, CHUNK] at inputs k; zero beyond the edges."""
    if EVEN:
        return tl.load(weight_ptr + rows[:, None] + k[None, :])
    return tl.load(weight_ptr + rows[:, None] + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def load_input(x_ptr, residual_ptr, total_ptr, k, K, first, ADD_IN: tl.constexpr):
    """Inputs [CHUNK] in float32, plus the residual; one program keeps the sum."""
    x = tl.load(x_ptr + k, mask=k < K, other=0.0)
    if ADD_IN:
        other = tl.load(residual_ptr + k, mask=k < K, other=0.0)
        x = (x.to(tl.float32) + other.to(tl.float32)).to(total_ptr.dtype.element_ty)
        if first:
            tl.store(total_ptr + k, x, mask=k < K)
    return x.to(tl.float32)


@triton.jit
def load_or(ptr, at, size, default, WANTED: tl.constexpr):
    """Values at `at`, the default beyond `size` or where the whole is not wanted."""
    if WANTED:
        return tl.load(ptr + at, mask=at < size, other=default)
    else:
        return tl.full(at.shape, default, tl.float32)


@triton.jit
def prefetch_rows(weight_ptr, rows, live, first_k, K, LINES: tl.constexpr):
    """Ask for LINES * 64 inputs of each weight row from first_k on to be brought to L2."""
    if LINES > 0:
        line = tl.minimum(first_k + tl.arange(0, LINES) * 64, K - 1)
        ask_for_lines(weight_ptr + tl.where(live, rows, 0)[:, None] + line[None, :])


@triton.jit
def gemv_kernel(
    x_ptr, residual_ptr, gain_ptr, weight_ptr, bias_ptr, out_ptr, total_ptr, N, K, eps, offset,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, EVEN: tl.constexpr, GATED: tl.constexpr,
    NORM: tl.constexpr, ADD_IN: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [N] = act(norm(x + residual) @ weight.T + bias) for one token; ROWS outputs per program.

    rms(x) is a factor common to all inputs, so it is applied to the sums: x is read once, beside the weights.
    """
    TILE: tl.constexpr = ROWS * 2 if GATED else ROWS
    LINES: tl.constexpr = triton.next_power_of_2(CHUNKS * CHUNK // 64) if PDL and CHUNKS > 1 else 0
    pid = tl.program_id(0)
    rows, n = weight_rows(pid * ROWS, TILE, N, K, GATED)
    live = n < N
    k = tl.arange(0, CHUNK)
    w = load_tile(weight_ptr, rows, k, live, K, EVEN)
    gain = load_or(gain_ptr, k, K, 1.0, NORM)
    prefetch_rows(weight_ptr, rows, live, CHUNK, K, LINES)
    wait(PDL)
    squares = tl.zeros([CHUNK], tl.float32)
    partial = tl.zeros([TILE, CHUNK // LANES], tl.float32)
    for c in tl.static_range(CHUNKS):
        x = load_input(x_ptr, residual_ptr, total_ptr, k, K, pid == 0, ADD_IN)
        wide = w.to(tl.float32)
        if NORM:
            squares += x * x
            x *= gain.to(tl.float32) + offset
        if c + 1 < CHUNKS:  # the next weights are on their way while these are multiplied
            k += CHUNK
            w = load_tile(weight_ptr, rows, k, live, K, EVEN)
            gain = load_or(gain_ptr, k, K, 1.0, NORM)
        partial += tl.sum(tl.reshape(wide * x[None, :], [TILE, CHUNK // LANES, LANES]), 2)
    acc = tl.sum(partial, 1)
    if NORM:
        acc *= tl.rsqrt(tl.sum(squares, 0) / K + eps)
    if BIAS:
        half = (tl.arange(0, TILE) % 2) * N * GATED
        acc += tl.load(bias_ptr + half + n, mask=live, other=0.0).to(tl.float32)
    if GATED:
        gate, up = tl.split(tl.reshape(acc, [ROWS, 2]))
        acc = gate * tl.sigmoid(gate) * up
    m = pid * ROWS + tl.arange(0, ROWS)
    tl.store(out_ptr + m, acc.to(out_ptr.dtype.element_ty), mask=m < N)


@triton.jit
def finish(
    acc, bias_ptr, out_ptr, m, first, M, N, TILE: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Bias, activation and store for a tile of sums acc [BLOCK_M, TILE]."""
    if BIAS:
        j = tl.arange(0, TILE)
        if GATED:
            b = tl.load(bias_ptr + first + j // 2 + (j % 2) * N, mask=first + j // 2 < N, other=0.0)
        else:
            b = tl.load(bias_ptr + first + j, mask=first + j < N, other=0.0)
        acc += b.to(tl.float32)[None, :]
    if GATED:
        gate, up = tl.split(tl.reshape(acc, [acc.shape[0], TILE // 2, 2]))
        acc = gate * tl.sigmoid(gate) * up
        n = first + tl.arange(0, TILE // 2)
    else:
        n = first + tl.arange(0, TILE)
    live = (m < M)[:, None] & (n < N)[None, :]
    where = m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def load_edge(ptr, rows, k, live, K, EVEN_K: tl.constexpr):
    """A tile [rows, k]; rows that are not live are zero, and so are inputs beyond K unless EVEN_K."""
    if EVEN_K:
        return tl.load(ptr + rows + k[None, :], mask=live[:, None], other=0.0)
    return tl.load(ptr + rows + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def tile_of(M, N_TILES, BLOCK_M: tl.constexpr):
    """Tile indices (m, n); groups of 8 row tiles share weights in L2 where there are many."""
    pid = tl.program_id(0)
    m_tiles = tl.cdiv(M, BLOCK_M)
    group = pid // (8 * N_TILES)
    height = tl.minimum(m_tiles - group * 8, 8)
    inside = pid % (8 * N_TILES)
    return group * 8 + inside % height, inside // height


@triton.jit(do_not_specialize=["M"])
def skinny_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, partial_ptr, count_ptr, M, N, K, x_stride, steps, split,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """out [M, N] = act(x @ weight.T + bias).

    With SPLIT each of `split` parts leaves its sums in `partial`; the part that ends last adds them in order of
    the inputs, so the result never depends on timing.
    """
    outputs: tl.constexpr = TILE // 2 if GATED else TILE
    n_tiles = tl.cdiv(N, outputs)
    pid_m, pid_n = tile_of(M, n_tiles, BLOCK_M)
    part = tl.program_id(1)
    first = pid_n * outputs
    rows, n = weight_rows(first, TILE, N, K, GATED)
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    prefetch_rows(weight_ptr, rows, n < N, part * steps * BLOCK_K, K, PREFETCH)
    wait(PDL)
    here = m.to(tl.int64)[:, None]
    acc = tl.zeros([BLOCK_M, TILE], tl.float32)
    for step in tl.range(
        part * steps, tl.minimum(part * steps + steps, tl.cdiv(K, BLOCK_K)), num_stages=STAGES
    ):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x = load_edge(x_ptr, here * x_stride, k, m < M, K, EVEN_K)
        w = load_edge(weight_ptr, rows[:, None], k, n < N, K, EVEN_K)
        acc = tl.dot(x, tl.trans(w), acc)
    if not SPLIT:
        finish(acc, bias_ptr, out_ptr, m, first, M, N, TILE, GATED, BIAS)
    else:
        tile = pid_m * n_tiles + pid_n
        inner = tl.arange(0, BLOCK_M)[:, None] * TILE + tl.arange(0, TILE)[None, :]
        slab = partial_ptr + tile.to(tl.int64) * (split * BLOCK_M * TILE)
        tl.store(slab + part * (BLOCK_M * TILE) + inner, acc)
        tl.debug_barrier()  # every thread's sums are written before one thread says so
        ticket = tl.atomic_add(count_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if ticket == split - 1:
            total = tl.zeros([BLOCK_M, TILE], tl.float32)
            for s in tl.range(split, num_stages=1):
                total += tl.load(slab + s * (BLOCK_M * TILE) + inner, cache_modifier=".cg")
            tl.store(count_ptr + tile, 0)  # ready for the next launch
            finish(total, bias_ptr, out_ptr, m, first, M, N, TILE, GATED, BIAS)


def new_total(x: Tensor, fusion: Fusion) -> Tensor:
    """Where x + before goes; x itself where nothing is added."""
    return x if fusion.before is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def gemv(
    x_MK: Tensor, weight: Tensor, config: Gemv, fusion: Fusion = PLAIN, out_dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [1, N], x + before [1, K]) for one token; the weight is contiguous."""
    assert x_MK.shape[0] == 1
    assert x_MK.stride(1) == 1
    assert weight.is_contiguous()
    n, k = fusion.outputs(weight), weight.shape[1]
    out = torch.empty((1, n), dtype=out_dtype or x_MK.dtype, device=x_MK.device)
    total = new_total(x_MK, fusion)
    chunks = triton.cdiv(k, config.chunk)
    gemv_kernel[(triton.cdiv(n, config.rows),)](
        x_MK, fusion.before, fusion.gain, weight, fusion.bias, out, total, n, k,
        fusion.eps, fusion.offset, ROWS=config.rows, CHUNK=config.chunk, CHUNKS=chunks,
        EVEN=n % config.rows == 0 and k == chunks * config.chunk, GATED=fusion.gated,
        NORM=fusion.gain is not None, ADD_IN=fusion.before is not None,
        BIAS=fusion.bias is not None, PDL=pdl, num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out, total


def skinny(
    x_MK: Tensor, weight: Tensor, config: Skinny, fusion: Fusion = PLAIN,
    out_dtype: torch.dtype | None = None, pdl: bool = False, block_m: int | None = None,
) -> Tensor:  # fmt: skip
    """[M, N] of x; a norm came before, in a launch of its own."""
    assert x_MK.stride(1) == 1
    assert weight.is_contiguous()
    assert fusion.gain is None
    m, k = x_MK.shape
    n = fusion.outputs(weight)
    block_m = block_m or (16 if m <= 16 else 32 if m <= 32 else 64)
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n * (2 if fusion.gated else 1), config.n)
    out = torch.empty((m, n), dtype=out_dtype or x_MK.dtype, device=x_MK.device)
    steps = triton.cdiv(triton.cdiv(k, config.k), config.split)
    partial = counts = None
    if config.split > 1:
        assert tiles <= MOST_TILES
        partial = torch.empty(
            tiles * config.split * block_m * config.n, dtype=torch.float32, device=x_MK.device
        )
        counts = split_counters(x_MK.device)
    lines = triton.next_power_of_2(max(1, min(steps * config.k, 1024) // 64))
    skinny_kernel[(tiles, config.split)](
        x_MK, weight, fusion.bias, out, partial, counts, m, n, k, x_MK.stride(0), steps, config.split,
        BLOCK_M=block_m, TILE=config.n, BLOCK_K=config.k, SPLIT=config.split > 1, EVEN_K=k % config.k == 0,
        GATED=fusion.gated, BIAS=fusion.bias is not None, PREFETCH=lines if pdl and m <= 64 else 0,
        PDL=pdl, STAGES=config.stages, num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out


def normed_first(x: Tensor, fusion: Fusion, pdl: bool) -> tuple[Tensor, Tensor, Fusion]:
    """(normed x, x + before, what is left to fuse): the norm as a launch of its own."""
    if fusion.gain is None:
        assert fusion.before is None, "a residual before the product comes with its norm"
        return x, x, fusion
    normed, total = normalize(x, fusion.before, fusion.gain, fusion.eps, fusion.offset, pdl)
    return normed, total, replace(fusion, gain=None, before=None)


def library(
    x: Tensor, weight: Tensor, fusion: Fusion, out_dtype: torch.dtype | None, pdl: bool, config: Blas | None = None
) -> Tensor:  # fmt: skip
    """The same product by cuBLAS, what surrounds it by launches of its own. `config`: by which algorithm, if it can."""
    wide = out_dtype == torch.float32 and x.dtype in TENSOR_CORE_TYPES and x.is_cuda and not fusion.gated
    out = None
    if config is not None and fusion.bias is None:
        out = blas.multiply(x, weight, config, torch.float32 if wide else x.dtype)
    if out is None and wide:
        # The sums as they are, without a pass that rounds and one that converts.
        out = torch.mm(x, weight.t(), out_dtype=torch.float32)
        out = out if fusion.bias is None else out.add_(fusion.bias)
    if out is None:
        out = functional.linear(x, weight, fusion.bias)
    if fusion.gated:
        out = gated(out, "silu", pdl)
    return out if out_dtype is None else out.to(out_dtype)


def multiply_by(
    config: Skinny | Ring | Wide | Blas | None, x: Tensor, weight: Tensor, fusion: Fusion,
    out_dtype: torch.dtype | None, pdl: bool,
) -> Tensor:  # fmt: skip
    """[M, N] by the kernel that the configuration is for, None the library; the norm came before."""
    match config:
        case Skinny():
            return skinny(x, weight, config, fusion, out_dtype, pdl)
        case Ring():
            from headrace.kernels.gpu.ring import ring

            return ring(x, weight, config, fusion.bias, out_dtype or x.dtype, pdl, fusion.gated)
        case Wide():
            return multiply(x, weight, config, fusion, out_dtype, pdl)
        case Blas() | None:
            return library(x, weight, fusion, out_dtype, pdl, config)


def product(
    x_MK: Tensor, weight: Tensor, fusion: Fusion = PLAIN, out_dtype: torch.dtype | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [M, N], x + before [M, K]) by whichever kernel the tables name for this device and shape."""
    x = rows_of(x_MK)
    cap, pdl = configs.capability(x.device), configs.pdl(x.device)
    tokens, n, k = x.shape[0], fusion.outputs(weight), weight.shape[1]
    if deterministic:
        x, total, fusion = normed_first(x, fusion, pdl)
        block_m, tile = rules.INVARIANT_NARROW if tokens <= 64 else rules.INVARIANT_WIDE
        many = rules.INVARIANT_MANY.get(cap)
        if tokens > block_m and many is not None and fits(x, weight):
            return multiply(x, weight, many, fusion, out_dtype, pdl), total
        return skinny(x, weight, tile, fusion, out_dtype, pdl, block_m), total
    if tokens == 1:
        return gemv(x, weight, configs.gemv(cap, n, k, fusion.gated), fusion, out_dtype, pdl)
    config = configs.skinny(cap, tokens, n, k, fusion.gated)
    if config is None:
        config = configs.middle(cap, tokens, n, k, fusion.gated)
    x, total, fusion = normed_first(x, fusion, pdl)
    if isinstance(config, Ring | Wide | Blas) and not fits(x, weight):
        config = None
    return multiply_by(config, x, weight, fusion, out_dtype, pdl), total
