"""What a draw is made of, in Triton: a token's noise, its distance from the likeliest, its mass (kernels/sample.py)."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from headrace.kernels import noise, sample

NEAR = tl.constexpr(sample.NEAR)
MASS = tl.constexpr(sample.MASS)
UNIT = tl.constexpr(noise.UNIT)
MIX_A = tl.constexpr(noise.MIX_A)
MIX_B = tl.constexpr(noise.MIX_B)
SEED_A = tl.constexpr(noise.SEED_A)
SEED_B = tl.constexpr(noise.SEED_B)


@triton.jit
def mix(x):
    """sample._mix for uint32."""
    x = x ^ (x >> 16)
    x = x * MIX_A
    x = x ^ (x >> 15)
    x = x * MIX_B
    return x ^ (x >> 15)


COMPILED = isinstance(mix, triton.JITFunction)
"""Whether kernels are compiled; Triton's interpreter knows no libdevice."""


@triton.jit
def row_keys(seed, position):
    """noise.row_keys of one row."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    at = (position & 0xFFFFFFFF).to(tl.uint32)
    return mix(mix(mix(low + SEED_A) ^ high) + at), mix(mix(mix(high + SEED_B) ^ low) ^ at)


@triton.jit
def random_bits(ids, first, second):
    """noise.random_bits for token ids int32, as uint32."""
    x = ids.to(tl.uint32) + first
    x = x ^ (x >> 16)
    x = x * MIX_A
    x = x ^ second
    x = x ^ (x >> 15)
    x = x * MIX_B
    return (x ^ (x >> 15)) & 0x7FFFFFFF


@triton.jit
def gumbel(ids, first, second, LIBM: tl.constexpr):
    """noise.gumbel for token ids int32."""
    uniform = (random_bits(ids, first, second).to(tl.float32) + 0.5) * UNIT
    if LIBM:
        noise = -libdevice.log(-libdevice.log1p(-uniform))
    else:
        noise = -tl.log(-tl.log(1.0 - uniform.to(tl.float64)).to(tl.float32))
    return noise


@triton.jit
def distance(peak, z):
    """How far z lies below the row's peak, as an integer in the same order; the largest one for NaN."""
    d = peak - z
    d = tl.where(d < NEAR, 0.0, d)
    return tl.where(d == d, d.to(tl.int32, bitcast=True), 0x7FFFFFFF)


@triton.jit
def mass(key, LIBM: tl.constexpr):
    """sample._mass, of a distance given as an integer."""
    d = key.to(tl.float32, bitcast=True)
    weight = libdevice.exp(-d) if LIBM else tl.exp(-d)
    return tl.where(key < 0x7F800000, weight * MASS, 0.0).to(tl.int64)


@triton.jit
def power(x, LIBM: tl.constexpr):
    """2**x to a few parts in 2**22; 0 where that is too small for a normal number."""
    if LIBM:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)
