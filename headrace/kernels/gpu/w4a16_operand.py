"""4-bit weights from shared memory to what warp group products take from registers, in Gluon: for w4a16_wide.py."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def load_groups(ptr, row_R, step, last, G, GROUP: gl.constexpr):
    """Scales or zero points of rows for both tiles of a step; of the last one from there on."""
    column = gl.minimum(step, last) * 128
    first_R = gl.load(ptr + row_R * G + column // GROUP)
    if GROUP % 128 != 0:
        return first_R, gl.load(ptr + row_R * G + gl.minimum((column + 64) // GROUP, G - 1))
    else:
        return first_R, first_R


@gluon.jit
def spread(first_R, second_R, GROUP: gl.constexpr, numbers_l: gl.constexpr):
    """Over the 2 x 16 columns of a nibble: [64, 32]."""
    if GROUP % 128 != 0:
        column = gl.arange(0, 32, gl.SliceLayout(0, numbers_l))
        return gl.where((column < 16)[None, :], first_R[:, None], second_R[:, None])
    else:
        wide, _ = gl.broadcast(first_R[:, None], gl.zeros([64, 32], first_R.dtype, numbers_l))
        return wide


@gluon.jit
def numbers(
    w, low, scale, NIBBLE: gl.constexpr, CODE: gl.constexpr, DTYPE: gl.constexpr, SUMMED: gl.constexpr
):
    """Nibbles of int16 w plus `low`, times their scales if sums are not."""
    if SUMMED:
        return gl.inline_asm_elementwise(
            CODE[NIBBLE], "=r,r,r", [w, low], dtype=DTYPE.value, is_pure=True, pack=2
        )
    return gl.inline_asm_elementwise(
        CODE[NIBBLE], "=r,r,r,r", [w, low, scale], dtype=DTYPE.value, is_pure=True, pack=2
    )


@gluon.jit
def unpack(
    w_s, scale_R, more_R, zero_R, more_zero_R, numbers_l: gl.constexpr, operand_l: gl.constexpr,
    GROUP: gl.constexpr, ZERO: gl.constexpr, CODE: gl.constexpr, MAGIC: gl.constexpr, DTYPE: gl.constexpr,
    SUMMED: gl.constexpr,
):  # fmt: skip
    """Weights [64, 128] of two tiles of four blocks, as the matrix units take them. Nothing changes threads.

    In shared memory [block 4, tile 2, lane 32, element 8]: see kernels/w4a16.py for the last two.
    """
    words_l: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [4, 0]],
        [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]],
        [[8, 0], [16, 0]],
        [],
        [32, 64],
    )
    # block, tile, row 4, row 2, pair, half, row 8, one of two
    w = w_s.load(words_l).reshape([4, 2, 4, 2, 4, 2, 2, 2])
    w = gl.convert_layout(w.permute([0, 6, 2, 3, 1, 5, 4, 7]).reshape([64, 32]), numbers_l)
    scale = w if SUMMED else spread(scale_R, more_R, GROUP, numbers_l).to(DTYPE)
    if ZERO:
        zero = spread(zero_R, more_zero_R, GROUP, numbers_l)
        low = (-8.0 - MAGIC - zero.to(gl.float32)).to(DTYPE)
    else:
        low = gl.full([64, 32], -8.0 - MAGIC, DTYPE, numbers_l)
    first = numbers(w, low, scale, 0, CODE, DTYPE, SUMMED)
    second = numbers(w, low, scale, 1, CODE, DTYPE, SUMMED)
    third = numbers(w, low, scale, 2, CODE, DTYPE, SUMMED)
    fourth = numbers(w, low, scale, 3, CODE, DTYPE, SUMMED)
    even, odd = gl.join(first, third), gl.join(second, fourth)
    both = gl.join(even, odd).reshape([64, 2, 16, 2, 2])  # row, tile, column, nibble 2, nibble 1
    return gl.convert_layout(both.permute([0, 1, 3, 4, 2]).reshape([64, 128]), operand_l)
