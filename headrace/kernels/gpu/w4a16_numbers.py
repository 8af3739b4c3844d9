"""Four bits to numbers of sixteen, for the kernels of 4-bit weights.

A nibble v below the exponent of 128 (1024 in fp16) is the number 128 + v: one operation for two of them, and one more
to take 136 away (Kim et al. 2022, "Who Says Elephants Can't Run", section 3.2). Assembly says it; where there is none,
as in Triton's interpreter, the same in Triton.
"""

import torch
import triton
import triton.language as tl


def _code(nibble: int, half: bool, low: bool, scaled: bool) -> str:
    """Two nibbles of a register to two numbers, plus what is `low` and times their scales where asked for."""
    kind, magic, one = ("f16", 0x6400, 0x3C00) if half else ("bf16", 0x4300, 0x3F80)
    last = "$0" if not low and not scaled else "t"
    lines = [
        ".reg .b32 t, one;",
        f"shr.u32 t, $1, {4 * nibble};",
        f"lop3.b32 {last}, t, 0x000f000f, {magic << 16 | magic:#x}, 0xea;",  # (t & mask) | magic
    ]
    if low:
        lines += [
            f"mov.b32 one, {one << 16 | one:#x};",
            f"fma.rn.{kind}x2 {'t' if scaled else '$0'}, t, one, $2;",
        ]
    if scaled:
        lines += [f"mul.rn.{kind}x2 $0, t, $3;"]
    return "{ " + " ".join(lines) + " }"


def codes(dtype: torch.dtype, low: bool, scaled: bool = False) -> tuple[str, ...]:
    """Of the nibbles 0 to 3."""
    return tuple(_code(nibble, dtype == torch.float16, low, scaled) for nibble in range(4))


@triton.jit
def magic(DTYPE: tl.constexpr):
    """What the exponent adds to a nibble."""
    return 1024.0 if tl.float16 == DTYPE else 128.0


@triton.jit
def nibbles(w, NIBBLE: tl.constexpr, DTYPE: tl.constexpr):
    """As the first two operations of the assembly, for Triton's interpreter, which has none."""
    return ((w.to(tl.int32) >> (4 * NIBBLE)) & 15).to(tl.float32) + magic(DTYPE)


@triton.jit
def raw_numbers(w, NIBBLE: tl.constexpr, CODE: tl.constexpr, DTYPE: tl.constexpr):
    """Nibbles of int16 w plus `magic`."""
    if CODE is None:
        return nibbles(w, NIBBLE, DTYPE).to(DTYPE)
    return tl.inline_asm_elementwise(CODE[NIBBLE], "=r,r", [w], dtype=DTYPE.value, is_pure=True, pack=2)


@triton.jit
def numbers(w, low, NIBBLE: tl.constexpr, CODE: tl.constexpr, DTYPE: tl.constexpr):
    """Nibbles of int16 w plus `magic` plus `low`, which takes away magic, 8 and the zero point."""
    if CODE is None:
        return (nibbles(w, NIBBLE, DTYPE) + low.to(tl.float32)).to(DTYPE)
    return tl.inline_asm_elementwise(
        CODE[NIBBLE], "=r,r,r", [w, low], dtype=DTYPE.value, is_pure=True, pack=2
    )


@triton.jit
def scaled_numbers(w, low, scale, NIBBLE: tl.constexpr, CODE: tl.constexpr, DTYPE: tl.constexpr):
    """As numbers, times scale and rounded once."""
    if CODE is None:
        return (numbers(w, low, NIBBLE, CODE, DTYPE).to(tl.float32) * scale.to(tl.float32)).to(DTYPE)
    return tl.inline_asm_elementwise(
        CODE[NIBBLE], "=r,r,r,r", [w, low, scale], dtype=DTYPE.value, is_pure=True, pack=2
    )


@triton.jit
def low_of(zero, DTYPE: tl.constexpr):
    """What `numbers` takes: exact in 16 bits."""
    return (-8.0 - magic(DTYPE) - zero.to(tl.float32)).to(DTYPE)
