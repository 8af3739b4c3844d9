"""Root-mean-square normalization in Triton: a few rows per program, one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels.launch import power_of_two, rows_of, warps_for


@triton.jit
def norm_kernel(
    x_ptr, residual_ptr, gain_ptr, out_ptr, total_ptr, rows, x_stride, residual_stride, eps, offset,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS, N] of x (+ residual) to out (and the sum to total); all statistics in float32."""
    n = tl.arange(0, BLOCK)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    live = (row < rows) & (n < N)[None, :]
    gain = tl.load(gain_ptr + n, mask=n < N, other=0.0).to(tl.float32) + offset
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * x_stride + n[None, :], mask=live, other=0.0)
    if ADD:
        other = tl.load(residual_ptr + row * residual_stride + n[None, :], mask=live, other=0.0)
        x = (x.to(tl.float32) + other.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * N + n[None, :], x, mask=live)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / N + eps)
    normed = wide * scale[:, None] * gain[None, :]
    tl.store(out_ptr + row * N + n[None, :], normed.to(out_ptr.dtype.element_ty), mask=live)


def normalize(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """(normed, x + residual), shaped like x and contiguous; the second is x itself without a residual."""
    flat = rows_of(x)
    rows, size = flat.shape
    block = power_of_two(size)
    per_program = max(1, 1024 // block)  # whatever the number of rows, so that a row's sum never changes
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(out)
    other = flat if residual is None else rows_of(residual)
    if rows:
        norm_kernel[(triton.cdiv(rows, per_program),)](
            flat, other, weight, out, total, rows, flat.stride(0), other.stride(0), eps, offset,
            N=size, ROWS=per_program, BLOCK=block, ADD=residual is not None, PDL=pdl,
            num_warps=warps_for(block * per_program), launch_pdl=pdl,
        )  # fmt: skip
    return out, total
