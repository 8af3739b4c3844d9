"""Rounding of a layer's inputs to 8 bits in Triton: one program per token, one pass over memory."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels.launch import power_of_two, rows_of, warps_for
from headrace.kernels.rounding import DTYPES

LONG = 1 << 14
"""Columns from which on registers are capped, so that a multiprocessor holds two programs."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """fp8 or int8; inputs that share a scale, 0 for all of a token; one scale for everything instead."""

    kind: str
    group: int = 0
    fixed: Tensor | None = None


@triton.jit
def to_8bit(x, FP8: tl.constexpr, FIXED: tl.constexpr):
    """The nearest 8-bit number, ties to even; clipped where the scale is not that of the largest."""
    if FP8:
        if FIXED:
            x = tl.minimum(tl.maximum(x, -448.0), 448.0)
        return x.to(tl.float8e4nv)
    else:
        nearest = (x + 12582912.0) - 12582912.0  # 1.5 * 2^23: nothing is left below one
        return tl.minimum(tl.maximum(nearest, -127.0), 127.0).to(tl.int8)


@triton.jit
def scale_of(peak, fixed_ptr, FP8: tl.constexpr, FIXED: tl.constexpr):
    """What numbers up to `peak` are divided by; one where all are zero."""
    if FIXED:
        return peak * 0.0 + tl.load(fixed_ptr).to(tl.float32)
    else:
        largest: tl.constexpr = 448.0 if FP8 else 127.0
        return tl.where(peak > 0, tl.div_rn(peak, peak * 0.0 + largest), 1.0)


@triton.jit
def round_row(
    x, n, row, N, values_ptr, scale_ptr, fixed_ptr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, FP8: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Store x [BLOCK] rounded, and its scales. Multiplies by the inverse: only ties may fall otherwise."""
    if GROUP > 0:
        parts: tl.constexpr = BLOCK // GROUP
        grouped = tl.reshape(x, [parts, GROUP])
        scale = scale_of(tl.max(tl.abs(grouped), 1), fixed_ptr, FP8, FIXED)
        inverse = tl.div_rn(scale * 0.0 + 1.0, scale)
        x = tl.reshape(grouped * inverse[:, None], [BLOCK])
        part = tl.arange(0, parts)
        count = tl.cdiv(N, GROUP)
        tl.store(scale_ptr + row * count + part, scale, mask=part < count)
    else:
        scale = scale_of(tl.max(tl.abs(x), 0), fixed_ptr, FP8, FIXED)
        x = x * tl.div_rn(scale * 0.0 + 1.0, scale)
        tl.store(scale_ptr + row, scale)
    tl.store(values_ptr + row * N + n, to_8bit(x, FP8, FIXED), mask=n < N)


@triton.jit
def round_kernel(
    x_ptr, residual_ptr, gain_ptr, total_ptr, values_ptr, scale_ptr, fixed_ptr, x_stride, residual_stride, N, eps,
    offset,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, FP8: tl.constexpr, FIXED: tl.constexpr, NORM: tl.constexpr,
    ADD: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row: x, or norm(x + residual), or silu(x) * x[N:], in 8 bits."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    gain = 1.0
    if NORM:
        gain = tl.load(gain_ptr + n, mask=n < N, other=0.0).to(tl.float32) + offset
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * x_stride + n, mask=n < N, other=0.0)
    if ADD:
        other = tl.load(residual_ptr + row * residual_stride + n, mask=n < N, other=0.0)
        x = (x.to(tl.float32) + other.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + row * N + n, x, mask=n < N)
    if NORM:
        wide = x.to(tl.float32)
        x = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / N + eps) * gain).to(x_ptr.dtype.element_ty)
    if GATED:
        up = tl.load(x_ptr + row * x_stride + N + n, mask=n < N, other=0.0)
        wide = x.to(tl.float32)
        act = (wide * tl.sigmoid(wide)).to(x_ptr.dtype.element_ty).to(tl.float32)
        x = (act * up.to(tl.float32)).to(x_ptr.dtype.element_ty)
    round_row(x.to(tl.float32), n, row, N, values_ptr, scale_ptr, fixed_ptr, BLOCK, GROUP, FP8, FIXED)


def _launch(
    x: Tensor, size: int, how: Rounding, pdl: bool, residual: Tensor | None = None, total: Tensor | None = None,
    gain: Tensor | None = None, eps: float = 0.0, offset: float = 0.0, gated: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, block = x.shape[0], max(power_of_two(size), how.group)
    values = torch.empty((rows, size), dtype=DTYPES[how.kind], device=x.device)
    shape = (rows, triton.cdiv(size, how.group)) if how.group else (rows,)
    scale = torch.empty(shape, dtype=torch.float32, device=x.device)
    stride = 0 if residual is None else residual.stride(0)
    round_kernel[(rows,)](
        x, residual, gain, total, values, scale, how.fixed, x.stride(0), stride, size, eps, offset,
        BLOCK=block, GROUP=how.group, FP8=how.kind == "fp8", FIXED=how.fixed is not None, NORM=gain is not None,
        ADD=residual is not None, GATED=gated, PDL=pdl, num_warps=warps_for(block), launch_pdl=pdl,
        **({"maxnreg": 64} if block >= LONG and x.is_cuda else {}),
    )  # fmt: skip
    return values, scale


def round_plain(x: Tensor, how: Rounding, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """Values [T, K] and scales [T] or [T, groups]."""
    x = rows_of(x)
    return _launch(x, x.shape[1], how, pdl)


def round_normed(
    x: Tensor,
    residual: Tensor | None,
    gain: Tensor,
    eps: float,
    offset: float,
    how: Rounding,
    pdl: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As round_plain of norm(x + residual); and the sum."""
    flat = rows_of(x)
    total = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    other = None if residual is None else rows_of(residual)
    values, scale = _launch(flat, flat.shape[1], how, pdl, other, total, gain, eps, offset)
    return values, scale, total


def round_gated(gate_up: Tensor, how: Rounding, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """As round_plain of silu(gate) * up."""
    flat = rows_of(gate_up)
    return _launch(flat, flat.shape[1] // 2, how, pdl, gated=True)
