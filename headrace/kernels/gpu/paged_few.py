"""QK-norm, rotary embedding, the KV store and attention of a few rows with one query each, in one Triton launch.

Few rows are bound by latency, to which a launch that makes nothing but q adds its own. Rows are cut into even pieces,
one a program, as paged_decode.py cuts few rows; each program norms and rotates the queries that it needs. What the
cache holds already is read before the wait for the projection, the first tile into registers. The newest key and value
are not read from the cache at all: the program of a row's last piece has them in registers, rounded as the cache rounds
them, begins its sums with them, and stores them for later steps. So no program reads what another one writes.

What may be read before the wait: `starts` and `context` come from the host, and earlier keys and values from earlier
steps, all before a step's first launch, which overlaps nothing. Tables are made in the step. Where `derive` makes them,
it lets others begin before it is done; but next comes the gather of the embedding, which lets others begin only when
its own wait for `derive` is over, where configurations say that there may be this kernel (embed.py). Where torch's
kernels make them, these let nobody begin early. Tables, keys and values are read past L1, which may hold older ones.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels import configs
from headrace.kernels.choices import PagedFew
from headrace.kernels.gpu.paged_decode import (
    BUNCH_ELEMENTS,
    MOST_PIECES,
    Workspace,
    ask_for_keys,
    capped,
    clear_empty,
    clear_padding,
    hand_in,
    in_powers_of_two,
    share_of,
    tiles_of,
)
from headrace.kernels.gpu.rotate import stored
from headrace.kernels.gpu.widen import widen
from headrace.kernels.launch import power_of_two
from headrace.kernels.paged import Pages, Scores


@triton.jit
def gains_of(gain_ptr, d, pair, offset, D: tl.constexpr, NORM: tl.constexpr):
    """What the norm multiplies components by, and those that they rotate with (`pair`)."""
    gain_D = tl.full(d.shape, 1.0, tl.float32)
    pair_gain_D = gain_D
    if NORM:
        gain_D = tl.load(gain_ptr + d, mask=d < D, other=0.0).to(tl.float32) + offset
        pair_gain_D = tl.load(gain_ptr + pair, mask=d < D, other=0.0).to(tl.float32) + offset
    return gain_D, pair_gain_D


@triton.jit
def turns_of(turns_ptr, position, d, pair, busy, HALF: tl.constexpr, ROPE: tl.constexpr):
    """What a position multiplies components by, and those that they rotate with."""
    cos_D = tl.full(d.shape, 1.0, tl.float32)
    sin_D = tl.zeros(d.shape, tl.float32)
    if ROPE:
        where = turns_ptr + position.to(tl.int64) * (2 * HALF) + tl.minimum(d, pair)
        turns = d < tl.where(busy, 2 * HALF, 0)
        cos_D = tl.load(where, mask=turns, other=1.0)
        sin_D = tl.load(where + HALF, mask=turns, other=0.0)
        sin_D = tl.where(d < HALF, -sin_D, sin_D)
    return cos_D, sin_D


@triton.jit
def turn(
    x_HD, other_HD, gain_D, other_gain_D, cos_D, sin_D, eps,
    D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Heads normed and rotated, in their own type. other: of each component the one that it rotates with."""
    kind = x_HD.dtype
    x, other = x_HD.to(tl.float32), other_HD.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = (x * scale * gain_D[None, :]).to(kind).to(tl.float32)  # rounded here by the definition too
        other = (other * scale * other_gain_D[None, :]).to(kind).to(tl.float32)
    if ROPE:
        x = x * cos_D[None, :] + other * sin_D[None, :]
    return x.to(kind)


@triton.jit
def fetch(
    k_ptr, v_ptr, page_N, tile, keys, window,
    TOKEN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    WINDOW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile's keys and values [TILE, D_PAD], zero where there are none to be seen."""
    key_N = tile * TILE + tl.arange(0, TILE)
    seen_N = key_N < keys
    if WINDOW:
        seen_N = seen_N & (key_N >= keys - window)
    if WIDE:
        page_N = page_N.to(tl.int64)
    d = tl.arange(0, D_PAD)
    where = ((page_N * BLOCK + key_N % BLOCK) * TOKEN)[:, None] + d[None, :]
    live = seen_N[:, None] & (d[None, :] < D)
    k_ND = tl.load(k_ptr + where, mask=live, other=0.0, cache_modifier=".cg")
    v_ND = tl.load(v_ptr + where, mask=live, other=0.0, cache_modifier=".cg")
    return k_ND, v_ND


@triton.jit
def pages_of(line_ptr, tile, keys, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Blocks of a tile's keys; 0 beyond the row's end."""
    key_N = tile * TILE + tl.arange(0, TILE)
    return tl.load(line_ptr + key_N // BLOCK, mask=key_N < keys, other=0, cache_modifier=".cg")


@triton.jit
def attend_tile(
    q_GD, k_ND, v_ND, tile, keys, window, peak_G, mass_GN, acc_GD, score_scale, softcap,
    TILE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Peaks [G], masses [G, TILE] and weighted values [G, D] with a tile's keys added; peaks in powers of two."""
    key_N = tile * TILE + tl.arange(0, TILE)
    seen_N = key_N < keys
    if WINDOW:
        seen_N = seen_N & (key_N >= keys - window)
    score = tl.dot(q_GD, tl.trans(widen(k_ND, q_GD.dtype)), input_precision="ieee") * score_scale
    score = tl.where(seen_N[None, :], capped(score, softcap, SOFTCAP), float("-inf"))
    new_G = tl.maximum(peak_G, tl.max(score, 1))
    floor_G = tl.where(new_G == float("-inf"), 0.0, new_G)
    p = tl.exp2(score - floor_G[:, None])
    fade_G = tl.exp2(peak_G - floor_G)
    acc_GD = acc_GD * fade_G[:, None]
    acc_GD = tl.dot(p.to(q_GD.dtype), widen(v_ND, q_GD.dtype), acc_GD, input_precision="ieee")
    return new_G, mass_GN * fade_G[:, None] + p, acc_GD


@triton.jit(do_not_specialize=["rows", "tokens", "table_stride", "window"])
def attend_new_kernel(
    q_ptr, k_new_ptr, v_new_ptr, turns_ptr, q_gain_ptr, k_gain_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr,
    out_ptr, part_ptr, arrived_ptr, rows, tokens, eps, offset, k_inverse, v_inverse, score_scale, value_scale, softcap,
    window, q_stride, k_stride, v_stride, table_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, LEAST: tl.constexpr,
    MOST: tl.constexpr, H: tl.constexpr, BUNCH: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
    FP8: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A piece of a row for a kv head: see the head of this file. G, H and D_PAD are GROUP and D padded."""
    TOKEN: tl.constexpr = KV_HEADS * D
    if PDL:
        gdc_launch_dependents()
    row_R = tl.arange(0, ROWS)
    _, _, tiles_R = tiles_of(context_ptr, starts_ptr, row_R, row_R < rows, window, TILE, WINDOW)
    _, goal, _, row, base, end = share_of(tiles_R, KV_HEADS, LEAST, MOST, ROWS)
    head, at = tl.program_id(0) % KV_HEADS, tl.program_id(0) // KV_HEADS
    keys, first, tiles = tiles_of(context_ptr, starts_ptr, row, row < rows, window, TILE, WINDOW)
    token = tl.load(starts_ptr + row, mask=row < rows, other=0).to(tl.int64)
    taken = tl.load(starts_ptr + rows)
    busy = at < end
    pieces = tl.maximum((tiles + goal - 1) // goal, 1)
    piece = (tiles + pieces - 1) // pieces
    index = at - base
    owner = busy & (index == pieces - 1)
    # What the cache has, and a window of it: all keys but the newest.
    old, window = keys - 1, window - 1
    last = tl.minimum(first + (index + 1) * piece, (old + TILE - 1) // TILE)
    first += index * piece
    line_ptr = table_ptr + row.to(tl.int64) * table_stride
    k_ptr += head * D
    v_ptr += head * D
    page_N = pages_of(line_ptr, first, old, BLOCK, TILE)
    newest = tl.load(line_ptr + old // BLOCK, mask=owner, other=0, cache_modifier=".cg").to(tl.int64)
    newest = (newest * BLOCK + old % BLOCK) * TOKEN
    k_ND, v_ND = fetch(k_ptr, v_ptr, page_N, first, old, window, TOKEN, BLOCK, TILE, D, D_PAD, WINDOW, WIDE)
    page_N = pages_of(line_ptr, first + 1, old, BLOCK, TILE)
    g, d = tl.arange(0, G), tl.arange(0, D_PAD)
    pair = tl.where(d < HALF, d + HALF, tl.where(d < 2 * HALF, d - HALF, d))
    q_gain_D, q_pair_gain_D = gains_of(q_gain_ptr, d, pair, offset, D, NORM)
    k_gain_D, k_pair_gain_D = gains_of(k_gain_ptr, d, pair, offset, D, NORM)
    cos_D, sin_D = turns_of(turns_ptr, old, d, pair, busy, HALF, ROPE)
    if PDL:
        if first + 1 < last:
            ask_for_keys(k_ptr, v_ptr, line_ptr, (first + 1) * TILE, old, TOKEN, BLOCK, D)
        gdc_wait()
    if busy:
        inner = g[:, None] * D + d[None, :]
        inside = (g[:, None] < GROUP) & (d[None, :] < D)
        mine = d[None, :] < tl.where(owner, D, 0)
        every = tl.zeros([G, 1], tl.int32)  # the new key in all rows, as it is to meet each of them
        q_ptr += token * q_stride + head * (GROUP * D)
        k_new_ptr += token * k_stride + head * D
        v_new_ptr += token * v_stride + head * D
        q_GD = tl.load(q_ptr + inner, mask=inside, other=0.0)
        q_pair_GD = tl.load(q_ptr + g[:, None] * D + pair[None, :], mask=inside, other=0.0)
        k_GD = tl.load(k_new_ptr + every + d[None, :], mask=mine, other=0.0)
        k_pair_GD = tl.load(k_new_ptr + every + pair[None, :], mask=mine, other=0.0)
        v_1D = tl.load(v_new_ptr + d[None, :], mask=mine, other=0.0)
        q_GD = turn(q_GD, q_pair_GD, q_gain_D, q_pair_gain_D, cos_D, sin_D, eps, D, NORM, ROPE)
        k_GD = turn(k_GD, k_pair_GD, k_gain_D, k_pair_gain_D, cos_D, sin_D, eps, D, NORM, ROPE)
        k_GD = stored(k_GD, k_inverse, k_ptr.dtype.element_ty, FP8)
        v_1D = stored(v_1D, v_inverse, v_ptr.dtype.element_ty, FP8)
        tl.store(k_ptr + newest + every + d[None, :], k_GD, mask=mine & (g[:, None] == 0))
        tl.store(v_ptr + newest + d[None, :], v_1D, mask=mine)
        score_G = tl.sum(q_GD.to(tl.float32) * k_GD.to(tl.float32), 1) * score_scale
        peak_G = tl.where(owner, capped(score_G, softcap, SOFTCAP), float("-inf"))
        mass_GN = tl.zeros([G, TILE], tl.float32)
        mass_GN += tl.where(tl.arange(0, TILE)[None, :] < tl.where(owner, 1, 0), 1.0, 0.0)
        acc_GD = tl.zeros([G, D_PAD], tl.float32) + v_1D.to(tl.float32)
        for tile in range(first, last):
            k_next_ND, v_next_ND = fetch(
                k_ptr, v_ptr, page_N, tile + 1, old, window, TOKEN, BLOCK, TILE, D, D_PAD, WINDOW, WIDE
            )
            page_N = pages_of(line_ptr, tile + 2, old, BLOCK, TILE)
            peak_G, mass_GN, acc_GD = attend_tile(
                q_GD, k_ND, v_ND, tile, old, window, peak_G, mass_GN, acc_GD, score_scale, softcap,
                TILE, SOFTCAP, WINDOW,
            )  # fmt: skip
            k_ND, v_ND = k_next_ND, v_next_ND
        hand_in(
            peak_G, tl.sum(mass_GN, 1), acc_GD, part_ptr, arrived_ptr + row * KV_HEADS + head,
            out_ptr + token * out_stride + head * (GROUP * D), value_scale, base * KV_HEADS + head, KV_HEADS, 0,
            index, pieces, GROUP, H, D, BUNCH,
        )  # fmt: skip
    clear_padding(out_ptr, taken, tokens, out_stride, KV_HEADS * GROUP, D, D_PAD)
    clear_empty(context_ptr, starts_ptr, out_ptr, rows, out_stride, KV_HEADS * GROUP, D, D_PAD)


class New(NamedTuple):
    """What a step's tokens bring, straight from the projection, and what is done to it first: see rotate.rotate_store.

    Tokens may have any stride; heads lie next to each other.
    """

    q_THD: Tensor
    k_TKD: Tensor
    v_TKD: Tensor
    turns_PR: Tensor | None
    q_weight_D: Tensor | None
    k_weight_D: Tensor | None
    eps: float
    offset: float


def attend_new(
    new: New, pages: Pages, scores: Scores, out_THD: Tensor, workspace: Workspace,
    *, config: PagedFew, programs: int,
) -> None:  # fmt: skip
    """rotate_store, then attention, of rows that have one query each or none; tokens after the last row become zero.

    The token of a row with `context` keys stands at position context - 1, and is stored where the row's table says.
    Rows without keys get zero, and nothing is stored for them. `programs` is the grid, or more where rows need more.
    """
    (heads, head_dim), (block, kv_heads), rows = new.q_THD.shape[1:], pages.k.shape[1:3], len(pages.context)
    group = heads // kv_heads
    assert all(x.stride()[1:] == (head_dim, 1) for x in (*new[:3], out_THD))
    assert pages.k.is_contiguous() and pages.v.is_contiguous()
    row_steps, padded, padded_group = power_of_two(rows), max(16, power_of_two(head_dim)), power_of_two(group)
    programs = max(programs // kv_heads, 2 * row_steps) * kv_heads
    workspace.reserve(programs * group * (head_dim + 2), rows * kv_heads)
    (score_scale, softcap), pdl = in_powers_of_two(pages, scores), configs.pdl(new.q_THD.device)
    norm, turns = new.q_weight_D is not None and new.k_weight_D is not None, new.turns_PR
    attend_new_kernel[(programs,)](
        *new[:3], turns, new.q_weight_D if norm else None, new.k_weight_D if norm else None,
        pages.k, pages.v, pages.table, pages.starts, pages.context, out_THD, workspace.part, workspace.arrived,
        rows, len(out_THD), new.eps, new.offset, 1 / pages.k_scale, 1 / pages.v_scale, score_scale, pages.v_scale,
        softcap, scores.window or 0, *(x.stride(0) for x in (*new[:3], pages.table, out_THD)),
        KV_HEADS=kv_heads, GROUP=group, G=max(16, padded_group), D=head_dim, D_PAD=padded,
        HALF=0 if turns is None else turns.shape[1] // 2, BLOCK=block, ROWS=row_steps, TILE=config.keys,
        LEAST=max(1, config.split // config.keys), MOST=MOST_PIECES, H=padded_group,
        BUNCH=max(1, config.warps * BUNCH_ELEMENTS // (padded_group * padded)),
        NORM=norm, ROPE=turns is not None, FP8=pages.k.dtype == torch.float8_e4m3fn, SOFTCAP=bool(softcap),
        WINDOW=scores.window is not None, WIDE=pages.k.numel() >= 1 << 31, PDL=pdl, num_warps=config.warps,
        **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
