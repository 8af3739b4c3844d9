"""One token times 8-bit weights in Triton: bound by the weights' bytes, inputs rounded and normed on the way.

N outputs, K inputs; gate and up as in matmul.py. As many programs as fit at once walk over the outputs, so that inputs
are rounded once per program and not once per tile; a program holds a whole row's inputs in registers.

Instructions are the limit next to bytes: an H200 reads 18 weights per cycle and multiprocessor, which issues for 128
lanes. So weights are multiplied in pairs: floats as half precision, eight products of which are summed in it before
they go to float32 (inputs are scaled so that nothing overflows); integers by dp4a, four at a time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.choices import Gemv8
from headrace.kernels.gpu.product import ask_for_lines, wait
from headrace.kernels.gpu.rounding import scale_of, to_8bit
from headrace.kernels.launch import power_of_two

FP8_DOT = tl.constexpr("""{
    .reg .b16 lo, hi; .reg .b32 a, b, s; .reg .f16 p, q; .reg .f32 f, g;
    mov.b32 {lo, hi}, $1; cvt.rn.f16x2.e4m3x2 a, lo; cvt.rn.f16x2.e4m3x2 b, hi;
    mul.rn.f16x2 s, a, $5; fma.rn.f16x2 s, b, $6, s;
    mov.b32 {lo, hi}, $2; cvt.rn.f16x2.e4m3x2 a, lo; cvt.rn.f16x2.e4m3x2 b, hi;
    fma.rn.f16x2 s, a, $7, s; fma.rn.f16x2 s, b, $8, s;
    mov.b32 {lo, hi}, $3; cvt.rn.f16x2.e4m3x2 a, lo; cvt.rn.f16x2.e4m3x2 b, hi;
    fma.rn.f16x2 s, a, $9, s; fma.rn.f16x2 s, b, $10, s;
    mov.b32 {lo, hi}, $4; cvt.rn.f16x2.e4m3x2 a, lo; cvt.rn.f16x2.e4m3x2 b, hi;
    fma.rn.f16x2 s, a, $11, s; fma.rn.f16x2 s, b, $12, s;
    mov.b32 {p, q}, s; cvt.f32.f16 f, p; cvt.f32.f16 g, q; add.f32 $0, f, g;
}""")
# A byte b of an integer, plus 128, in the low half of 0x6400 is 1024 + 128 + b in half precision.
_PAIR = """
    xor.b32 u, ${w}, 0x80808080;
    prmt.b32 a, u, h, 0x4140; prmt.b32 b, u, h, 0x4342;
    sub.rn.f16x2 a, a, m; sub.rn.f16x2 b, b, m;
    fma.rn.f16x2 s, a, ${x}, s; fma.rn.f16x2 s, b, ${y}, s;"""
INT8_DOT = tl.constexpr(
    "{ .reg .b32 u, a, b, s, h, m; .reg .f16 p, q; .reg .f32 f, g;"
    " mov.b32 s, 0; mov.b32 h, 0x64646464; mov.b32 m, 0x64806480;"
    + "".join(
        _PAIR.replace("{w}", str(1 + i)).replace("{x}", str(5 + 2 * i)).replace("{y}", str(6 + 2 * i))
        for i in range(4)
    )
    + " mov.b32 {p, q}, s; cvt.f32.f16 f, p; cvt.f32.f16 g, q; add.f32 $0, f, g; }"
)
WHOLE_DOT = tl.constexpr("""{
    .reg .s32 s;
    dp4a.s32.s32 s, $1, $5, 0; dp4a.s32.s32 s, $2, $6, s; dp4a.s32.s32 s, $3, $7, s; dp4a.s32.s32 $0, $4, $8, s;
}""")


@dataclass(frozen=True, slots=True)
class Around8:
    """What surrounds a product of one token: tensors are None where a part is absent.

    rounded  inputs are rounded to the weight's kind, by `fixed` where that is there
    """

    rounded: bool = True
    fixed: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None  # norm weight [K]
    eps: float = 0.0
    offset: float = 0.0
    before: Tensor | None = None  # added to x before the norm, [1, K]
    gated: bool = False


@triton.jit
def four(x):
    """Elements [n, 4] as four tensors [n]."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def half_pairs(x, BLOCK: tl.constexpr):
    """Numbers [BLOCK] as pairs of half precision in words: eight tensors [BLOCK / 16]."""
    words = x.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    low, high = tl.split(tl.reshape(words, [BLOCK // 2, 2]))
    even, odd = tl.split(tl.reshape(low | (high << 16), [BLOCK // 4, 2]))
    a, c, e, g = four(tl.reshape(even, [BLOCK // 16, 4]))
    b, d, f, h = four(tl.reshape(odd, [BLOCK // 16, 4]))
    return a, b, c, d, e, f, g, h


@triton.jit
def byte_words(x, BLOCK: tl.constexpr):
    """int8 [BLOCK] as words of four: four tensors [BLOCK / 16]."""
    a, b, c, d = four(tl.reshape(x.to(tl.int32) & 0xFF, [BLOCK // 4, 4]))
    return four(tl.reshape(a | (b << 8) | (c << 16) | (d << 24), [BLOCK // 16, 4]))


@triton.jit
def inverse_power(peak):
    """(a power of two by which numbers up to `peak` become less than 16, its inverse)."""
    exponent = (peak.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 16), 240)
    down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return down * 8.0, (exponent << 23).to(tl.float32, bitcast=True) * 0.125


@triton.jit
def load_rows(
    weight_ptr, rows, live, width, CHUNKS: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """A weight's rows as [SPLIT, ROWS, CHUNKS, LANES]: of a row SPLIT x LANES elements follow each other.

    In this order of axes warps are given parts of rows first, then rows, so that each sums up by itself what it can.
    Zero beyond `width` and where rows are not live.
    """
    part = tl.arange(0, SPLIT)[:, None, None, None]
    chunk = tl.arange(0, CHUNKS)[None, None, :, None]
    k = (chunk * SPLIT + part) * LANES + tl.arange(0, LANES)[None, None, None, :]
    where = rows.to(tl.int64)[None, :, None, None] * width + k
    return tl.load(weight_ptr + where, mask=live[None, :, None, None] & (k < width), other=0)


@triton.jit
def ask_for(weight_ptr, rows, live, width, LINES: tl.constexpr, STEP: tl.constexpr):
    """Have rows brought to L2, `STEP` elements a line."""
    line = tl.arange(0, LINES)[None, :] * STEP
    first = tl.where(live, rows, 0).to(tl.int64)[:, None] * width
    where = first + tl.where(live[:, None] & (line < width), line, 0)
    ask_for_lines(weight_ptr + where)


@triton.jit
def spread(x, CHUNKS: tl.constexpr, SPLIT: tl.constexpr):
    """Inputs as they meet load_rows."""
    apart = tl.reshape(x, [CHUNKS, SPLIT, 1, x.shape[0] // (CHUNKS * SPLIT)])
    return tl.permute(apart, [1, 2, 0, 3])


@triton.jit
def summed(x):
    """[SPLIT, ROWS, CHUNKS, n] to [ROWS]: a thread's own, a warp's, then those of warps."""
    return tl.sum(tl.sum(tl.sum(x, 2), 2), 0)


@triton.jit
def multiply_words(w, x, FP8: tl.constexpr, WHOLE: tl.constexpr):
    """Sums [ROWS] of words of four weights times the inputs, which are `half_pairs` or, WHOLE, `byte_words`."""
    chunks: tl.constexpr = w.shape[2]
    split: tl.constexpr = w.shape[0]
    even, odd = tl.split(tl.reshape(w, [split, w.shape[1], chunks, w.shape[3] // 4, 2, 2]))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    if WHOLE:
        sums = tl.inline_asm_elementwise(
            WHOLE_DOT, "=r,r,r,r,r,r,r,r,r",
            [w0, w1, w2, w3, spread(x[0], chunks, split), spread(x[1], chunks, split), spread(x[2], chunks, split),
             spread(x[3], chunks, split)],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        sums = tl.inline_asm_elementwise(
            FP8_DOT if FP8 else INT8_DOT, "=f,r,r,r,r,r,r,r,r,r,r,r,r",
            [w0, w1, w2, w3, spread(x[0], chunks, split), spread(x[1], chunks, split), spread(x[2], chunks, split),
             spread(x[3], chunks, split), spread(x[4], chunks, split), spread(x[5], chunks, split),
             spread(x[6], chunks, split), spread(x[7], chunks, split)],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return summed(sums).to(tl.float32)


@triton.jit
def multiply_each(w, x, FP8: tl.constexpr, WHOLE: tl.constexpr):
    """As multiply_words for weights one by one, floats as their bits."""
    if FP8:
        w = w.to(tl.float8e4nv, bitcast=True)
    x = spread(x, w.shape[2], w.shape[0])
    if WHOLE:
        return summed(w.to(tl.int32) * x.to(tl.int32)).to(tl.float32)
    else:
        return summed(w.to(tl.float32) * x.to(tl.float32))


@triton.jit
def load_scale(scale_ptr, rows, live):
    """Scales [TILE]; they are asked for with the weights, so that they are there when the sums are."""
    return tl.load(scale_ptr + rows, mask=live, other=0.0).to(tl.float32)


@triton.jit
def finished(acc, factor, bias_ptr, rows, live, BIAS: tl.constexpr):
    """Sums times scales, plus bias."""
    acc *= factor
    if BIAS:
        acc += tl.load(bias_ptr + rows, mask=live, other=0.0).to(tl.float32)
    return acc


@triton.jit
def gemv8_kernel(
    x_ptr, residual_ptr, gain_ptr, weight_ptr, scale_ptr, fixed_ptr, bias_ptr, out_ptr, total_ptr, N, K, eps, offset,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr, FP8: tl.constexpr,
    WORDS: tl.constexpr, ROUND: tl.constexpr, FIXED: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
    ADD: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [N] = act(rounded(norm(x + residual)) @ weight.T * scale + bias) for one token; outputs in equal shares.

    A turn has two sets of ROWS rows, gate and up where GATED, else neighbours: one is multiplied while the next is
    under way. With WORDS weights come four to an int32; without, in the type they have, multiplied one by one.
    """
    BLOCK: tl.constexpr = CHUNKS * SPLIT * 512
    each: tl.constexpr = 4 if WORDS else 1
    lanes: tl.constexpr = 128 if WORDS else 512
    STEP: tl.constexpr = ROWS if GATED else ROWS * 2
    WHOLE: tl.constexpr = ROUND and not FP8
    pid, programs = tl.program_id(0), tl.num_programs(0)
    begin, end = pid * N // programs, (pid + 1) * N // programs
    beyond = N if GATED else ROWS  # from a row of the first set to that of the second
    width = K // each
    n = begin + tl.arange(0, ROWS)
    w = load_rows(weight_ptr, n, n < end, width, CHUNKS, ROWS, SPLIT, lanes)
    scale = load_scale(scale_ptr, n, n < end)
    k = tl.arange(0, BLOCK)
    gain = 1.0
    if NORM:
        gain = tl.load(gain_ptr + k, mask=k < K, other=0.0).to(tl.float32) + offset
    if PDL:
        for turn in tl.static_range(AHEAD):
            ask_for(weight_ptr, n + turn * STEP + beyond, n + turn * STEP + beyond * (not GATED) < end, width,
                    BLOCK // 128, 128 // each)  # fmt: skip
            ask_for(
                weight_ptr,
                n + (turn + 1) * STEP,
                n + (turn + 1) * STEP < end,
                width,
                BLOCK // 128,
                128 // each,
            )
    wait(PDL)
    x = tl.load(x_ptr + k, mask=k < K, other=0.0)
    if ADD:
        other = tl.load(residual_ptr + k, mask=k < K, other=0.0)
        x = (x.to(tl.float32) + other.to(tl.float32)).to(x_ptr.dtype.element_ty)
        if pid == 0:
            tl.store(total_ptr + k, x, mask=k < K)
    x = x.to(tl.float32)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, 0) / K + eps) * gain
        x = x.to(x_ptr.dtype.element_ty).to(tl.float32)  # as it leaves a norm of its own
    peak = tl.max(tl.abs(x), 0)
    x_scale = 1.0
    if ROUND:
        x_scale = scale_of(peak, fixed_ptr, FP8, FIXED)
        x = to_8bit(x * tl.div_rn(x_scale * 0.0 + 1.0, x_scale), FP8, FIXED)
        if WORDS:
            if FP8:
                x = half_pairs(x.to(tl.float32) * 0.015625, BLOCK)
                x_scale *= 64.0
            else:
                x = byte_words(x, BLOCK)
    elif WORDS:
        down, x_scale = inverse_power(peak)
        x = half_pairs(x * down, BLOCK)
    for first in tl.range(begin, end, STEP, num_stages=1):
        n = first + tl.arange(0, ROWS)
        rows = n + beyond
        live = n < end if GATED else rows < end
        other_w = load_rows(weight_ptr, rows, live, width, CHUNKS, ROWS, SPLIT, lanes)
        other_scale = load_scale(scale_ptr, rows, live)
        acc = multiply_words(w, x, FP8, WHOLE) if WORDS else multiply_each(w, x, FP8, WHOLE)
        acc = finished(acc, scale * x_scale, bias_ptr, n, n < end, BIAS)
        w = load_rows(weight_ptr, n + STEP, n + STEP < end, width, CHUNKS, ROWS, SPLIT, lanes)
        scale = load_scale(scale_ptr, n + STEP, n + STEP < end)
        more = multiply_words(other_w, x, FP8, WHOLE) if WORDS else multiply_each(other_w, x, FP8, WHOLE)
        more = finished(more, other_scale * x_scale, bias_ptr, rows, live, BIAS)
        if GATED:
            acc = acc * tl.sigmoid(acc) * more
        else:
            tl.store(out_ptr + rows, more.to(out_ptr.dtype.element_ty), mask=live)
        tl.store(out_ptr + n, acc.to(out_ptr.dtype.element_ty), mask=n < end)


def gemv8(
    x_MK: Tensor, weight: Tensor, scale: Tensor, config: Gemv8, programs: int, around: Around8,
    out_dtype: torch.dtype | None = None, pdl: bool = False, words: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [1, N], x + before [1, K]) for one token, weight [N, K] contiguous and scale [N] or [N, 1].

    `words` needs a GPU, and K in multiples of 16.
    """
    assert x_MK.shape[0] == 1 and x_MK.stride(1) == 1
    assert weight.is_contiguous() and scale.is_contiguous() and scale.numel() == weight.shape[0]
    rows, k = weight.shape
    n = rows // 2 if around.gated else rows
    out = torch.empty((1, n), dtype=out_dtype or x_MK.dtype, device=x_MK.device)
    total = x_MK if around.before is None else torch.empty(x_MK.shape, dtype=x_MK.dtype, device=x_MK.device)
    rows_each = max(1, config.warps // config.split)
    fp8 = weight.dtype == torch.float8_e4m3fn
    bits = torch.int32 if words else torch.uint8 if fp8 else torch.int8
    gemv8_kernel[(min(programs, triton.cdiv(n, rows_each)),)](
        x_MK, around.before, around.gain, weight.view(bits), scale, around.fixed,
        around.bias, out, total, n, k, around.eps, around.offset,
        ROWS=rows_each, CHUNKS=power_of_two(triton.cdiv(k, 512 * config.split)), SPLIT=config.split,
        AHEAD=config.ahead, FP8=fp8, WORDS=words, ROUND=around.rounded,
        FIXED=around.fixed is not None, GATED=around.gated, NORM=around.gain is not None,
        ADD=around.before is not None, BIAS=around.bias is not None, PDL=pdl, num_warps=config.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out, total
