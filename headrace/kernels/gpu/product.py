"""Linear layers for tens to thousands of tokens in Triton: persistent programs, tiles by TMA, gate and up in one.

M tokens, N outputs, K inputs; weights as in matmul.py.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from headrace.kernels import configs
from headrace.kernels.choices import Wide

MOST_TILES = 1 << 16


@triton.jit
def wait(PDL: tl.constexpr):
    """Let the next kernel be brought in, then wait until the kernels before have ended."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def ask_for_lines(where):
    """Have the lines of 128 bytes at these addresses brought to L2."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0", "=r,l", [where.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@dataclass(frozen=True, slots=True)
class Fusion:
    """What surrounds a product: tensors are None where a part is absent."""

    bias: Tensor | None = None
    gain: Tensor | None = None  # norm weight [K]
    eps: float = 0.0
    offset: float = 0.0
    before: Tensor | None = None  # added to x before the norm, [M, K]
    gated: bool = False

    def outputs(self, weight: Tensor) -> int:
        """N: rows of the weight, half of them where gate and up are computed together."""
        return weight.shape[0] // 2 if self.gated else weight.shape[0]


PLAIN = Fusion()


@cache
def split_counters(device: torch.device) -> Tensor:
    """Arrivals per output tile, zero between launches; one stream per device computes."""
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing(), "run once before capturing"
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


@triton.jit
def place(tile, m_tiles, n_tiles):
    """Tile indices (m, n): row tiles of one weight tile follow each other, 8 at a time, and share it in L2."""
    group = tile // (8 * n_tiles)
    height = tl.minimum(m_tiles - group * 8, 8)
    inside = tile % (8 * n_tiles)
    return group * 8 + inside % height, inside // height


@triton.jit
def sums(
    x_tiles, weight_tiles, m, n, N, steps,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, GATED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums [BLOCK_M, WIDTH] for rows from m and outputs from n; those of gate and up."""
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    more = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        x = x_tiles.load([m, step * BLOCK_K])
        acc = tl.dot(x, weight_tiles.load([n, step * BLOCK_K]).T, acc)
        if GATED:
            more = tl.dot(x, weight_tiles.load([N + n, step * BLOCK_K]).T, more)
    return acc, more


@triton.jit
def store_tile(
    acc, more, first_m, first_n, bias_ptr, out_ptr, M, N,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Bias, activation and store."""
    m, n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, WIDTH)
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if BIAS:
            more += tl.load(bias_ptr + N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        acc = acc * tl.sigmoid(acc) * more
    live = (m < M)[:, None] & (n < N)[None, :]
    where = m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M"])
def multiply_kernel(
    x_tiles, weight_tiles, bias_ptr, out_ptr, M, N, K,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, GATED: tl.constexpr,
    BIAS: tl.constexpr, PDL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out [M, N] = act(x @ weight.T + bias)."""
    m_tiles, n_tiles, steps = tl.cdiv(M, BLOCK_M), tl.cdiv(N, WIDTH), tl.cdiv(K, BLOCK_K)
    wait(PDL)
    for tile in tl.range(tl.program_id(0), m_tiles * n_tiles, tl.num_programs(0)):
        m, n = place(tile, m_tiles, n_tiles)
        acc, more = sums(
            x_tiles, weight_tiles, m * BLOCK_M, n * WIDTH, N, steps, BLOCK_M, WIDTH, BLOCK_K, GATED, STAGES
        )
        store_tile(acc, more, m * BLOCK_M, n * WIDTH, bias_ptr, out_ptr, M, N,
                   BLOCK_M, WIDTH, GATED, BIAS)  # fmt: skip


def fits(x_MK: Tensor, weight: Tensor) -> bool:
    """Whether TMA can read these: rows that start at multiples of 16 bytes."""
    return (
        x_MK.data_ptr() % 16 == 0
        and weight.data_ptr() % 16 == 0
        and x_MK.stride(0) * x_MK.element_size() % 16 == 0
        and weight.shape[1] * weight.element_size() % 16 == 0
    )


def multiply(
    x_MK: Tensor, weight: Tensor, config: Wide, fusion: Fusion = PLAIN, out_dtype: torch.dtype | None = None,
    pdl: bool = False, programs: int = 0,
) -> Tensor:  # fmt: skip
    """out [M, N] for a fusion without a norm; `programs` in all, 0: as many as the device runs at once."""
    assert x_MK.stride(1) == 1 and weight.is_contiguous()
    assert fusion.gain is None and fusion.before is None, "the norm is a launch of its own"
    m, k = x_MK.shape
    n = fusion.outputs(weight)
    width = config.n // (2 if fusion.gated else 1)
    out = torch.empty((m, n), dtype=out_dtype or x_MK.dtype, device=x_MK.device)
    tiles = triton.cdiv(m, config.m) * triton.cdiv(n, width)
    programs = programs or configs.multiprocessors(x_MK.device) * config.programs
    multiply_kernel[(min(tiles, programs),)](
        TensorDescriptor(x_MK, [m, k], [x_MK.stride(0), 1], [config.m, config.k]),
        TensorDescriptor(weight, list(weight.shape), [k, 1], [width, config.k]),
        fusion.bias, out, m, n, k, BLOCK_M=config.m, WIDTH=width, BLOCK_K=config.k, GATED=fusion.gated,
        BIAS=fusion.bias is not None, PDL=pdl, STAGES=config.stages, num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out
