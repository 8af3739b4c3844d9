"""One token times 4-bit weights in Triton: persistent programs that keep their inputs in registers.

N outputs, K inputs; weights as kernels/w4a16.py tiles them, numbers as w4a16_numbers.py makes them. As many programs as
fit walk over blocks of 16 outputs, so that inputs are normed and laid out once per program and not once per block. A
matrix unit has 8 columns where one token needs one: each stands for one of the (at most 8) tiles of inputs that a warp
has, so that sums of tiles stay apart without a register of their own and are scaled once, after the last product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.choices import Int4One
from headrace.kernels.gpu import matmul
from headrace.kernels.gpu.product import Fusion, ask_for_lines, split_counters, wait
from headrace.kernels.gpu.w4a16_numbers import nibbles
from headrace.kernels.w4a16 import Int4Weight


def word_codes(dtype: torch.dtype) -> tuple[str, ...]:
    """Of the nibbles 0 to 3 of both halves of two words."""
    magic = 0x64006400 if dtype == torch.float16 else 0x43004300
    return tuple(
        "{ .reg .b32 t, u; "
        f"shr.u32 t, $2, {4 * nibble}; shr.u32 u, $3, {4 * nibble}; "
        f"lop3.b32 $0, t, 0x000f000f, {magic:#x}, 0xea; lop3.b32 $1, u, 0x000f000f, {magic:#x}, 0xea; }}"
        for nibble in range(4)
    )


@triton.jit
def load_tiles(weight_ptr, block, live, kb, last, before, KB, EVEN: tl.constexpr):
    """Tiles kb [W, T] of a block as words [W, T, 128]; `before` where there are none: inputs there are zero.

    In this order of axes each of W warps is given T tiles of its own.
    """
    inner = kb.to(tl.int64)[:, :, None] * 128 + tl.arange(0, 128)[None, None, :]
    at = weight_ptr + block.to(tl.int64) * KB * 128 + inner
    there = tl.where(live, 1, 0) > tl.zeros_like(kb) if EVEN else kb < tl.where(live, last, 0)
    return tl.load(at, mask=there[:, :, None], other=before)


@triton.jit
def places(first, G, within: tl.constexpr, GROUP: tl.constexpr, WARPS: tl.constexpr, TILES: tl.constexpr):
    """Which tiles the columns of sums stand for, and where in a block these have their scales for column `within`.

    They are loaded [lane, W, half of rows, one of two tiles] as the matrix unit leaves sums, so that no thread has
    to ask another.
    """
    lane = tl.arange(0, 32)[:, None, None, None]
    warp = tl.arange(0, WARPS)[None, :, None, None]
    half = tl.arange(0, 2)[None, None, :, None]
    one = tl.arange(0, 2)[None, None, None, :]
    row = half * 8 + lane // 4
    tile = lane % 4 * 2 + one
    kb = first + tile * WARPS + warp
    return tl.where(tile < TILES, kb, 1 << 30), row * G + (kb * 64 + within) // GROUP


@triton.jit
def load_factors(ptr, block, live, tile, at, last, G):
    """Scales or zero points of a block [W, 16, 8], a column for each tile."""
    s = tl.load(ptr + block.to(tl.int64) * (16 * G) + at, mask=tile < tl.where(live, last, 0), other=0)
    s = tl.permute(tl.reshape(s, [8, 4, s.shape[1], 2, 2]), (2, 3, 0, 1, 4))
    return tl.reshape(s, [s.shape[0], 16, 8])


@triton.jit
def load_set(
    weight_ptr, scale_ptr, zero_ptr, block, live, kb, first, last, before, KB, G,
    GROUP: tl.constexpr, EVEN: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """A block's tiles, scales and zero points of both halves of tiles."""
    w = load_tiles(weight_ptr, block, live, kb, last, before, KB, EVEN)
    tile, at = places(first, G, 0, GROUP, kb.shape[0], kb.shape[1])
    s = load_factors(scale_ptr, block, live, tile, at, last, G)
    more, z, z_more = s, s, s
    if ZERO:
        z = load_factors(zero_ptr, block, live, tile, at, last, G)
        z_more = z
    if GROUP == 32:
        tile, at = places(first, G, 32, GROUP, kb.shape[0], kb.shape[1])
        more = load_factors(scale_ptr, block, live, tile, at, last, G)
        if ZERO:
            z_more = load_factors(zero_ptr, block, live, tile, at, last, G)
    return w, s, more, z, z_more


@triton.jit
def word_numbers(w, NIBBLE: tl.constexpr, CODE: tl.constexpr, DTYPE: tl.constexpr):
    """One nibble of both halves of words [W, T, 128], plus `magic`, as the left operand [W, 16, T * 16].

    A thread's columns of a nibble follow each other there, as in fragments. Words, not int16, since those would be
    packed anew in every turn of a loop that carries them.
    The assembly takes two words, of a row and of that 8 further, and gives the numbers of each together.
    """
    W: tl.constexpr = w.shape[0]
    T: tl.constexpr = w.shape[1]
    if CODE is None:
        low, high = nibbles(w, NIBBLE, DTYPE).to(DTYPE), nibbles(w, NIBBLE + 4, DTYPE).to(DTYPE)
        v = tl.reshape(tl.join(low, high), [W, T, 8, 4, 2, 2, 2])
        v = tl.permute(v, (0, 5, 2, 1, 3, 4, 6))
    else:
        upper, lower = tl.inline_asm_elementwise(
            CODE[NIBBLE], "=r,=r,r,r", [w], dtype=(DTYPE.value, DTYPE.value), is_pure=True, pack=2
        )
        v = tl.reshape(tl.join(upper, lower), [W, T, 8, 4, 2, 2, 2])
        v = tl.permute(v, (0, 6, 2, 1, 3, 4, 5))
    return tl.reshape(v, [W, 16, T * 16])


@triton.jit
def beside(x, TILES: tl.constexpr):
    """Inputs [W, TILES * 16] of one nibble as a right operand [W, TILES * 16, 8]: a column for each tile."""
    tile = tl.arange(0, TILES * 16)[None, :, None] // 16
    column = tl.arange(0, 8)[None, None, :]
    return tl.where(tile == column, tl.broadcast_to(x[:, :, None], [x.shape[0], TILES * 16, 8]), 0.0)


@triton.jit
def fragments(x):
    """Inputs [W, T, 64] as four operands [W, T * 16, 8], one per nibble."""
    W: tl.constexpr = x.shape[0]
    T: tl.constexpr = x.shape[1]
    x = tl.permute(tl.reshape(x, [W, T, 2, 2, 2, 4, 2]), (0, 1, 5, 4, 6, 2, 3))
    x_02, x_13 = tl.split(tl.reshape(x, [W, T * 16, 2, 2]))
    x_0, x_2 = tl.split(x_02)
    x_1, x_3 = tl.split(x_13)
    return beside(x_0, T), beside(x_1, T), beside(x_2, T), beside(x_3, T)


@triton.jit
def one_sums(w, s, more, z, z_more, x, x_sum, x_sum_more, GROUP: tl.constexpr, CODE: tl.constexpr,
             ZERO: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """[W, 16, 8], which add up to the sums of 16 rows: a column of the matrix unit's for each tile of a warp."""
    LOW: tl.constexpr = -8.0 - (1024.0 if tl.float16 == DTYPE else 128.0)
    if ZERO:
        acc = x_sum * (LOW - z.to(tl.float32))
        other = x_sum_more * (LOW - z_more.to(tl.float32))
    else:
        acc, other = x_sum * LOW, x_sum_more * LOW
    acc = tl.dot(word_numbers(w, 0, CODE, DTYPE), x[0], acc)
    acc = tl.dot(word_numbers(w, 1, CODE, DTYPE), x[1], acc)
    other = tl.dot(word_numbers(w, 2, CODE, DTYPE), x[2], other)
    other = tl.dot(word_numbers(w, 3, CODE, DTYPE), x[3], other)
    if GROUP == 32:
        return acc * s.to(tl.float32) + other * more.to(tl.float32)
    else:
        return (acc + other) * s.to(tl.float32)


@triton.jit
def own_inputs(
    x_ptr, residual_ptr, gain_ptr, total_ptr, k, last, K, eps, offset, first_slot,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, ADD_IN: tl.constexpr,
):  # fmt: skip
    """norm(x + residual) at columns k [W, T, 64] below `last`, zero beyond; all of x is read for the norm's size."""
    x = matmul.load_input(x_ptr, residual_ptr, total_ptr, k, last, first_slot, ADD_IN)
    if NORM:
        gain = tl.load(gain_ptr + k, mask=k < last, other=0.0).to(tl.float32) + offset
        if SPLIT > 1:
            whole = matmul.load_input(x_ptr, residual_ptr, total_ptr, tl.arange(0, BLOCK), K, False, ADD_IN)
            squares = tl.sum(whole * whole, 0)
        else:
            squares = tl.sum(tl.reshape(x * x, [k.shape[0] * k.shape[1] * 64]), 0)
        x = x * tl.rsqrt(squares / K + eps) * gain
    return x.to(x_ptr.dtype.element_ty)


@triton.jit
def finish_one(acc, up, bias_ptr, out_ptr, n, live, N, GATED: tl.constexpr, BIAS: tl.constexpr):
    """Bias, activation and store of outputs n."""
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=live, other=0.0).to(tl.float32)
    if GATED:
        if BIAS:
            up += tl.load(bias_ptr + N + n, mask=live, other=0.0).to(tl.float32)
        acc = acc * tl.sigmoid(acc) * up
    tl.store(out_ptr + n, acc.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def ask_for_tiles(weight_ptr, block, live, first, last, KB, TILES: tl.constexpr):
    """Have a block's tiles from `first` to `last` brought to L2."""
    line = tl.arange(0, TILES * 4)
    line = tl.where(line < (last - first) * 4, line, 0) * 32
    ask_for_lines(weight_ptr + (tl.where(live, block, 0).to(tl.int64) * KB + first) * 128 + line)


@triton.jit
def one_kernel(
    x_ptr, residual_ptr, gain_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, total_ptr, partial_ptr,
    count_ptr, N, K, G, eps, offset,
    WARPS: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, ADD_IN: tl.constexpr,
    BIAS: tl.constexpr, ZERO: tl.constexpr, CODE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [N] = act(norm(x + residual) @ weight.T + bias) for one token; blocks of 16 outputs in equal shares.

    A program has WARPS * TILES tiles of inputs, its part of SPLIT, in registers. A turn has two sets of 16 rows, gate
    and up where GATED, else neighbours: one is multiplied while the other is under way. Parts leave their sums in
    `partial` [SPLIT, rows of the weight]; of those with the same outputs the one that ends last adds them up.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    STEP: tl.constexpr = 1 if GATED else 2
    slot, slots, part = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    KB, blocks = K // 64, N // 16
    begin, end = slot * blocks // slots, (slot + 1) * blocks // slots
    beyond = blocks if GATED else 1  # from a block of the first set to that of the second
    first, last = part * KB // SPLIT, (part + 1) * KB // SPLIT
    kb = first + tl.arange(0, TILES)[None, :] * WARPS + tl.arange(0, WARPS)[:, None]
    w, s, s_more, z, z_more = load_set(
        weight_ptr, scale_ptr, zero_ptr, begin, begin < end, kb, first, last, 0, KB, G, GROUP, EVEN, ZERO,
    )  # fmt: skip
    live = begin < end if GATED else begin + 1 < end
    v, r, r_more, y, y_more = load_set(
        weight_ptr, scale_ptr, zero_ptr, begin + beyond, live, kb, first, last, 0, KB, G, GROUP, EVEN, ZERO,
    )  # fmt: skip
    if PDL:
        for turn in tl.static_range(1, AHEAD + 1):
            ask_for_tiles(
                weight_ptr, begin + turn * STEP, begin + turn * STEP < end, first, last, KB, WARPS * TILES
            )
            ask_for_tiles(weight_ptr, begin + turn * STEP + beyond, begin + turn * STEP + STEP - 1 < end, first, last,
                          KB, WARPS * TILES)  # fmt: skip
    wait(PDL)
    k = kb[:, :, None] * 64 + tl.arange(0, 64)[None, None, :]
    x = own_inputs(x_ptr, residual_ptr, gain_ptr, total_ptr, k, last * 64, K, eps, offset, slot == 0,
                   SPLIT, BLOCK, NORM, ADD_IN)  # fmt: skip
    x = fragments(x)
    ones = tl.full([WARPS, 16, TILES * 16], 1.0, DTYPE)
    x_sum = tl.dot(ones, x[1], tl.dot(ones, x[0]))
    x_sum_more = tl.dot(ones, x[3], tl.dot(ones, x[2]))
    lane = tl.arange(0, 16)
    for turn in tl.range(tl.cdiv(end - begin, STEP), num_stages=1):
        block = begin + turn * STEP
        width = tl.where(block + STEP - 1 < end, 16, 0)  # of the second set
        one = one_sums(w, s, s_more, z, z_more, x, x_sum, x_sum_more, GROUP, CODE, ZERO, DTYPE)
        if block + STEP < end:  # a branch, which keeps the assembler from multiplying the other set first
            w, s, s_more, z, z_more = load_set(
                weight_ptr, scale_ptr, zero_ptr, block + STEP, begin < end, kb, first, last, w, KB, G,
                GROUP, EVEN, ZERO,
            )  # fmt: skip
        two = one_sums(v, r, r_more, y, y_more, x, x_sum, x_sum_more, GROUP, CODE, ZERO, DTYPE)
        if block + STEP + STEP - 1 < end:
            v, r, r_more, y, y_more = load_set(
                weight_ptr, scale_ptr, zero_ptr, block + STEP + beyond, begin < end, kb, first, last, v, KB, G,
                GROUP, EVEN, ZERO,
            )  # fmt: skip
        one, two = tl.split(tl.sum(tl.sum(tl.join(one, two), 2), 0))
        n = block * 16 + lane
        if SPLIT > 1:
            slab = partial_ptr + part * (2 * N if GATED else N) + n
            tl.store(slab, one)
            tl.store(slab + beyond * 16, two, mask=lane < width)
        else:
            finish_one(one, two, bias_ptr, out_ptr, n, lane < 16, N, GATED, BIAS)
            if not GATED:
                finish_one(two, two, bias_ptr, out_ptr, n + 16, lane < width, N, False, BIAS)
    if SPLIT > 1:
        tl.debug_barrier()  # every thread's sums are written before one thread says so
        ticket = tl.atomic_add(count_ptr + slot, 1, sem="acq_rel", scope="gpu")
        if ticket == SPLIT - 1:
            for row in tl.range(begin * 16, end * 16, 128, num_stages=1):
                n = row + tl.arange(0, 128)
                mine = n < end * 16
                acc = tl.zeros([128], tl.float32)
                up = acc
                for other in tl.static_range(SPLIT):
                    slab = partial_ptr + other * (2 * N if GATED else N) + n
                    acc += tl.load(slab, mask=mine, other=0.0, cache_modifier=".cg")
                    if GATED:
                        up += tl.load(slab + N, mask=mine, other=0.0, cache_modifier=".cg")
                finish_one(acc, up, bias_ptr, out_ptr, n, mine, N, GATED, BIAS)
            tl.store(count_ptr + slot, 0)  # ready for the next launch


def one(
    x_MK: Tensor, weight: Int4Weight, config: Int4One, multiprocessors: int, fusion: Fusion = matmul.PLAIN,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [1, N], x + before [1, K]) for one token."""
    assert x_MK.shape[0] == 1 and x_MK.stride(1) == 1
    k = x_MK.shape[1]
    n = fusion.outputs(weight.tiles) * 16
    out = torch.empty((1, n), dtype=x_MK.dtype, device=x_MK.device)
    total = matmul.new_total(x_MK, fusion)
    kb, most = k // 64, config.warps * config.tiles
    split = triton.cdiv(kb, most)
    slots = max(
        1, min(config.programs * multiprocessors // split, triton.cdiv(n // 16, 1 if fusion.gated else 2))
    )
    registers = min(255, 65536 // (32 * config.warps * config.programs) // 8 * 8)
    partial = counts = None
    if split > 1:
        partial = torch.empty(split * weight.tiles.shape[0] * 16, dtype=torch.float32, device=x_MK.device)
        counts = split_counters(x_MK.device)
    one_kernel[(slots, split)](
        x_MK, fusion.before, fusion.gain, weight.tiles.view(torch.int32), weight.scale, weight.zero, fusion.bias, out,
        total, partial,
        counts, n, k, weight.scale.shape[1], fusion.eps, fusion.offset,
        WARPS=config.warps, TILES=config.tiles, SPLIT=split, EVEN=kb == split * most, AHEAD=config.ahead,
        BLOCK=triton.next_power_of_2(k), GROUP=weight.group, GATED=fusion.gated, NORM=fusion.gain is not None,
        ADD_IN=fusion.before is not None, BIAS=fusion.bias is not None, ZERO=weight.zero is not None,
        CODE=word_codes(x_MK.dtype) if x_MK.is_cuda else None,
        PDL=pdl, num_warps=config.warps, launch_pdl=pdl, **({"maxnreg": registers} if x_MK.is_cuda else {}),
    )  # fmt: skip
    return out, total
