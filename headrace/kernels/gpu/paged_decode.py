"""Attention of rows with one query over a paged cache in Triton: bound by the bytes of keys and values.

The work of a launch is cut into equal shares on the device, from `context`, so the grid depends on nothing but
the chip: one CUDA graph serves any mixture of lengths. A share may end inside a row; what it has then goes to
a workspace, and whoever arrives last at a (row, kv head) adds the pieces up in order (flash-decoding with the
stream-K decomposition; Dao et al. 2023, Osama et al. 2023).

Work is counted in tiles of TILE keys of one kv head, laid out in the order row, kv head, tile:
    whole  (few rows)   every (row, head) is cut into even pieces, one piece a program
    else   (many rows)  the line of all tiles is cut every `quota` tiles, wherever that falls
    FIXED               pieces as in `whole`, but their number follows from the row's own length alone

Where (row, kv head) pairs are few, time is latency, not bytes: spread_kernel is `whole` with one piece a program,
which finds its blocks and asks the L2 for their contents while the kernel before still runs.

All query heads of a kv head are rows of one matrix product. A tile's keys are dealt out to the warps ("lanes",
L), each with a softmax of its own, so that the loop needs no exchange between warps; lanes meet at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels import configs
from headrace.kernels.configs import PagedDecode
from headrace.kernels.launch import power_of_two
from headrace.kernels.paged import Pages, Scores

LOG2_E = 1.4426950408889634
MOST_PIECES = 16  # of one row, where pieces are fixed
ROW_STEPS = (8, 32, 512, 4096, 32768)  # rows a compiled kernel can plan for
BUNCH_ELEMENTS = 2048  # of pieces, that a warp reads at once when it adds them up
LANE_KEYS = 16  # keys of a tile per lane: one matrix instruction's depth, one block at least


@triton.jit
def tiles_of(context_ptr, starts_ptr, row, inside, window, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """(keys, first tile in the window, tiles) of rows; no tiles for rows that have not exactly one query."""
    keys = tl.load(context_ptr + row, mask=inside, other=0)
    start = tl.load(starts_ptr + row, mask=inside, other=0)
    queries = tl.load(starts_ptr + row + 1, mask=inside, other=0) - start
    first = keys * 0
    if WINDOW:
        first = tl.maximum(keys - window, 0) // TILE
    tiles = tl.maximum((keys + TILE - 1) // TILE - first, 1)
    return keys, first, tl.where(queries == 1, tiles, 0)


@triton.jit
def share_of(tiles_R, KV_HEADS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, FIXED: tl.constexpr):
    """How this launch's work is cut: (whole, tiles per piece, units per program, first row, its first unit, end).

    A unit is a piece where rows are cut into pieces (`whole`), else a tile.
    """
    programs = tl.num_programs(0)
    if FIXED:
        whole = tl.sum(tiles_R) >= 0
        goal = LEAST + 0 * tl.sum(tiles_R)
        size_R = tl.minimum((tiles_R + LEAST - 1) // LEAST, MOST)
        quota = (tl.sum(size_R) * KV_HEADS + programs - 1) // programs
    else:
        total = tl.sum(tiles_R) * KV_HEADS
        goal = tl.maximum((total + programs - 1) // programs, LEAST)
        pieces_R = (tiles_R + goal - 1) // goal
        whole = tl.sum(pieces_R) * KV_HEADS <= programs
        size_R = tl.where(whole, pieces_R, tiles_R)
        quota = tl.where(whole, 1, goal)
    end_R = tl.cumsum(size_R, 0) * KV_HEADS
    at = tl.program_id(0) * quota
    row = tl.sum((end_R <= at).to(tl.int32))
    base = tl.max(tl.where(end_R <= at, end_R, 0))
    return whole, goal, quota, row, base, tl.max(end_R)


@triton.jit
def pieces_of(tiles, goal, whole, MOST: tl.constexpr, FIXED: tl.constexpr):
    """Units of one (row, kv head)."""
    pieces = (tiles + goal - 1) // goal
    if FIXED:
        return tl.minimum(pieces, MOST)
    return tl.where(whole, pieces, tiles)


@triton.jit
def page_of(line_ptr, key, keys, BLOCK: tl.constexpr):
    """Blocks that hold keys; 0 beyond the row's end, where table entries mean nothing."""
    return tl.load(line_ptr + key // BLOCK, mask=key < keys, other=0)


@triton.jit
def prefetch_tile(k_ptr, v_ptr, line_ptr, tile, keys, TOKEN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
                  D: tl.constexpr, D_PAD: tl.constexpr):  # fmt: skip
    """Ask for a tile's keys and values to be brought to the L2, 128 bytes at a time."""
    LINE: tl.constexpr = 1024 // k_ptr.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = D_PAD // LINE if D_PAD > LINE else 1
    key = tl.minimum(tile * TILE + tl.arange(0, TILE), tl.maximum(keys - 1, 0))
    place = page_of(line_ptr, key, keys, BLOCK).to(tl.int64) * (BLOCK * TOKEN) + key % BLOCK * TOKEN
    within = tl.minimum(tl.arange(0, LINES) * LINE, D - 1)
    inner = place[:, None] + within[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; prefetch.global.L2 [$2]; // $0", "=r,l,l",
        [(k_ptr + inner).to(tl.int64), (v_ptr + inner).to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def attend_tiles(
    q_GD, k_ptr, v_ptr, line_ptr, page_L, first, last, keys, window, score_scale, softcap,
    TOKEN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, D: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Peak [G], mass [G] and weighted values [G, D] of tiles first .. last; the peak in powers of two.

    page_L are the blocks of the first tile's lanes.
    """
    G: tl.constexpr = q_GD.shape[0]
    D_PAD: tl.constexpr = q_GD.shape[1]
    KEYS: tl.constexpr = TILE // LANES
    lane = tl.arange(0, LANES)
    d = tl.arange(0, D_PAD)
    within_LN = lane[:, None] * KEYS + tl.arange(0, KEYS)[None, :]
    inner_ND = tl.arange(0, KEYS)[:, None] * TOKEN + d[None, :]
    q_LGD = tl.broadcast_to(q_GD[None, :, :], [LANES, G, D_PAD])
    peak_LG = tl.full([LANES, G], float("-inf"), tl.float32)
    mass_LGN = tl.zeros([LANES, G, KEYS], tl.float32)
    acc_LGD = tl.zeros([LANES, G, D_PAD], tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        key_LN = tile * TILE + within_LN
        seen_LN = key_LN < keys
        if WINDOW:
            seen_LN = seen_LN & (key_LN >= keys - window)
        if WIDE:
            page_L = page_L.to(tl.int64)
        place_L = page_L * (BLOCK * TOKEN) + (tile * TILE + lane * KEYS) % BLOCK * TOKEN
        where = place_L[:, None, None] + inner_ND[None, :, :]
        live = seen_LN[:, :, None]
        if D_PAD != D:
            live = live & (d[None, None, :] < D)
        # The next tile's blocks are looked up a turn ahead, so that only one latency is left in the loop.
        page_L = page_of(line_ptr, (tile + 1) * TILE + lane * KEYS, keys, BLOCK)
        k_LND = tl.load(k_ptr + where, mask=live, other=0.0)
        score = tl.dot(q_LGD, tl.trans(k_LND.to(q_GD.dtype), 0, 2, 1), input_precision="ieee") * score_scale
        if SOFTCAP:
            score = softcap - 2.0 * softcap / (1.0 + tl.exp2(score))
        score = tl.where(seen_LN[:, None, :], score, float("-inf"))
        new_LG = tl.maximum(peak_LG, tl.max(score, 2))
        floor_LG = tl.where(new_LG == float("-inf"), 0.0, new_LG)
        p = tl.exp2(score - floor_LG[:, :, None])
        fade_LG = tl.exp2(peak_LG - floor_LG)
        v_LND = tl.load(v_ptr + where, mask=live, other=0.0)
        mass_LGN = mass_LGN * fade_LG[:, :, None] + p
        acc_LGD = acc_LGD * fade_LG[:, :, None]
        acc_LGD = tl.dot(p.to(q_GD.dtype), v_LND.to(q_GD.dtype), acc_LGD, input_precision="ieee")
        peak_LG = new_LG
    peak_G = tl.max(peak_LG, 0)
    fade_LG = tl.exp2(peak_LG - tl.where(peak_G == float("-inf"), 0.0, peak_G)[None, :])
    mass_G = tl.sum(tl.sum(mass_LGN, 2) * fade_LG, 0)
    return peak_G, mass_G, tl.sum(acc_LGD * fade_LG[:, :, None], 0)


@triton.jit
def add_pieces(
    part_ptr, out_ptr, value_scale, slot, step, shift, pieces,
    GROUP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BUNCH: tl.constexpr,
):  # fmt: skip
    """Add up all pieces of a (row, kv head), in the order of its keys, and write the result.

    BUNCH pieces are read at a time: one after the other, each would cost a latency. H is GROUP as a power of two.
    """
    h, d = tl.arange(0, H), tl.arange(0, D_PAD)
    inner_HD = h[:, None] * D + d[None, :]
    inside_HD = (h[:, None] < GROUP) & (d[None, :] < D)
    peak_H = tl.full([H], float("-inf"), tl.float32)
    mass_H = tl.zeros([H], tl.float32)
    acc_HD = tl.zeros([H, D_PAD], tl.float32)
    for bunch in range(0, pieces, BUNCH):
        i = bunch + tl.arange(0, BUNCH)
        here = part_ptr + (slot + step * i + tl.where(i == 0, shift, 0)).to(tl.int64) * (GROUP * (D + 2))
        live = i < pieces
        live_BH = live[:, None] & (h < GROUP)[None, :]
        # Other multiprocessors wrote these: read them where all meet, in L2.
        acc = tl.load(
            here[:, None, None] + inner_HD[None, :, :], mask=live[:, None, None] & inside_HD[None, :, :],
            other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        edge_BH = here[:, None] + GROUP * D + h[None, :]
        peak_BH = tl.load(edge_BH, mask=live_BH, other=float("-inf"), cache_modifier=".cg")
        mass_BH = tl.load(edge_BH + GROUP, mask=live_BH, other=0.0, cache_modifier=".cg")
        new_H = tl.maximum(peak_H, tl.max(peak_BH, 0))
        floor_H = tl.where(new_H == float("-inf"), 0.0, new_H)
        fade_H, fade_BH = tl.exp2(peak_H - floor_H), tl.exp2(peak_BH - floor_H[None, :])
        mass_H = mass_H * fade_H + tl.sum(mass_BH * fade_BH, 0)
        acc_HD = acc_HD * fade_H[:, None] + tl.sum(acc * fade_BH[:, :, None], 0)
        peak_H = new_H
    acc_HD = acc_HD * (value_scale / tl.where(mass_H == 0.0, 1.0, mass_H))[:, None]
    tl.store(out_ptr + inner_HD, acc_HD.to(out_ptr.dtype.element_ty), mask=inside_HD)


@triton.jit
def hand_in(
    peak_G, mass_G, acc_GD, part_ptr, counter, out_ptr, value_scale, slot, step, shift, index, pieces,
    GROUP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BUNCH: tl.constexpr,
):  # fmt: skip
    """Write the output of a (row, kv head) if this is its only piece or the last one to arrive."""
    g, d = tl.arange(0, acc_GD.shape[0]), tl.arange(0, acc_GD.shape[1])
    inner = g[:, None] * D + d[None, :]
    inside = (g[:, None] < GROUP) & (d[None, :] < D)
    if pieces == 1:
        acc_GD = acc_GD * (value_scale / tl.where(mass_G == 0.0, 1.0, mass_G))[:, None]
        tl.store(out_ptr + inner, acc_GD.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        place = slot + step * index + tl.where(index == 0, shift, 0)
        here = part_ptr + place.to(tl.int64) * (GROUP * (D + 2))
        tl.store(here + inner, acc_GD, mask=inside)
        tl.store(here + GROUP * D + g, peak_G, mask=g < GROUP)
        tl.store(here + GROUP * (D + 1) + g, mass_G, mask=g < GROUP)
        tl.debug_barrier()  # every thread's numbers are written before one thread says so
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == pieces - 1:
            add_pieces(
                part_ptr, out_ptr, value_scale, slot, step, shift, pieces, GROUP, H, D, acc_GD.shape[1], BUNCH
            )
            tl.store(counter, 0)  # for the next launch


@triton.jit
def clear_padding(out_ptr, token, tokens, out_stride, heads, D: tl.constexpr, D_PAD: tl.constexpr):
    """Zero for this program's part of the tokens from `token` on, so that nothing undefined goes to later layers."""
    d = tl.arange(0, D_PAD)
    token += tl.program_id(0)
    while token < tokens:
        for head in range(heads):
            where = out_ptr + token.to(tl.int64) * out_stride + head * D + d
            tl.store(where, tl.zeros([D_PAD], out_ptr.dtype.element_ty), mask=d < D)
        token += tl.num_programs(0)


@triton.jit(do_not_specialize=["rows", "tokens", "table_stride", "window"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr, out_ptr, part_ptr, arrived_ptr,
    rows, tokens, score_scale, value_scale, softcap, window, table_stride, q_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr, FIXED: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    WIDE: tl.constexpr, PDL: tl.constexpr, H: tl.constexpr, BUNCH: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """One program's share: see the head of this file. G, H and D_PAD are GROUP and D padded to powers of two."""
    row_R = tl.arange(0, ROWS)
    _, _, tiles_R = tiles_of(context_ptr, starts_ptr, row_R, row_R < rows, window, TILE, WINDOW)
    whole, goal, quota, row, base, end = share_of(tiles_R, KV_HEADS, LEAST, MOST, FIXED)
    at = tl.program_id(0) * quota
    stop = tl.minimum(at + quota, end)
    g, d = tl.arange(0, G), tl.arange(0, D_PAD)
    inner = g[:, None] * D + d[None, :]
    inside = (g[:, None] < GROUP) & (d[None, :] < D)
    taken = tl.load(starts_ptr + rows)
    if PDL:
        # What is above comes from the host: it was there before the kernel that this launch may overlap.
        gdc_launch_dependents()
        gdc_wait()
    clear_padding(out_ptr, taken, tokens, out_stride, KV_HEADS * GROUP, D, D_PAD)
    while at < stop:
        keys, window_first, tiles = tiles_of(context_ptr, starts_ptr, row, row < rows, window, TILE, WINDOW)
        size = pieces_of(tiles, goal, whole, MOST, FIXED)
        if at >= base + size * KV_HEADS:
            base += size * KV_HEADS
            row += 1
        else:
            head = (at - base) // size
            begin = (at - base) % size
            origin = at - begin  # this (row, head)'s first unit
            # Piece i's slot is slot + step * i (+ shift for i = 0). Where a piece is a unit, that is its number;
            # else a program has two: one for the piece it enters a head with, one for the piece it leaves with.
            step, shift = tl.where(whole, 1, 2), tl.where(whole, 0, 1)
            if whole:
                pieces, index, slot = size, begin, origin
                units = tl.minimum(size, 1)
                piece = (tiles + size - 1) // size
                first = tl.minimum(begin * piece, tiles)
                last = tl.minimum(first + piece, tiles)
            else:
                pieces = (origin + size - 1) // quota - origin // quota + 1
                index, slot = at // quota - origin // quota, 2 * (origin // quota)
                units = tl.minimum(size - begin, stop - at)
                first, last = begin, begin + units
            token = tl.load(starts_ptr + row).to(tl.int64)
            q_GD = tl.load(q_ptr + token * q_stride + head * (GROUP * D) + inner, mask=inside, other=0.0)
            line_ptr = table_ptr + row.to(tl.int64) * table_stride
            first += window_first
            page_L = page_of(line_ptr, first * TILE + tl.arange(0, LANES) * (TILE // LANES), keys, BLOCK)
            if PREFETCH > 0:  # the next head starts where this one did: spare it the memory's latency
                inside_next = (head + 1) * D
                more = (at + units < stop) & (head + 1 < KV_HEADS)
                wanted = tl.where(more & (whole == 0), tl.minimum(PREFETCH, tiles), 0)
                for tile in range(window_first, window_first + wanted):
                    prefetch_tile(k_ptr + inside_next, v_ptr + inside_next, line_ptr, tile, keys,
                                  KV_HEADS * D, BLOCK, TILE, D, D_PAD)  # fmt: skip
            peak_G, mass_G, acc_GD = attend_tiles(
                q_GD, k_ptr + head * D, v_ptr + head * D, line_ptr, page_L, first, window_first + last, keys, window,
                score_scale, softcap, KV_HEADS * D, BLOCK, TILE, LANES, D, SOFTCAP, WINDOW, WIDE, STAGES,
            )  # fmt: skip
            hand_in(
                peak_G, mass_G, acc_GD, part_ptr, arrived_ptr + row * KV_HEADS + head,
                out_ptr + token * out_stride + head * (GROUP * D), value_scale, slot, step, shift, index, pieces,
                GROUP, H, D, BUNCH,
            )  # fmt: skip
            at += units


@triton.jit(do_not_specialize=["rows", "tokens", "table_stride", "window"])
def spread_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr, out_ptr, part_ptr, arrived_ptr,
    rows, tokens, score_scale, value_scale, softcap, window, table_stride, q_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
    LEAST: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
    H: tl.constexpr, BUNCH: tl.constexpr, ALONE: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """One piece of one (row, kv head); rows of at most ALONE tiles are one piece. Needs programs > rows * KV_HEADS.

    What may be read before the kernels in front have ended (gdc_wait)? This launch may begin while several of
    them still run, because each lets its successor in before it waits itself. But a launch without PDL begins
    only when all before it has ended, and every kernel of ours waits, so "has ended" holds for what is in front
    of it too. Each step has such launches (and each graph replay is one) after `context`, `starts` and the table
    are written, so they are read here at once. So are old keys; but the newest key and the query are being
    written, and prefetching to the L2, where all writes meet, is right for any address: so keys and values are
    asked for here and loaded, as everything else is, after the wait.
    """
    at, row_R = tl.program_id(0), tl.arange(0, ROWS)
    if PDL:
        gdc_launch_dependents()
    _, _, tiles_R = tiles_of(context_ptr, starts_ptr, row_R, row_R < rows, window, TILE, WINDOW)
    # Rounding up adds less than one piece to each pair, so with this goal all pieces find a program.
    room = tl.num_programs(0) - rows * KV_HEADS
    goal = tl.maximum((tl.sum(tiles_R) * KV_HEADS + room - 1) // room, LEAST)
    pieces_R = tl.where(tiles_R <= ALONE, tl.minimum(tiles_R, 1), (tiles_R + goal - 1) // goal)
    end_R = tl.cumsum(pieces_R, 0) * KV_HEADS
    live = at < tl.max(end_R)
    row = tl.minimum(tl.sum((end_R <= at).to(tl.int32)), rows - 1)
    begin = at - tl.max(tl.where(end_R <= at, end_R, 0))
    keys, window_first, tiles = tiles_of(context_ptr, starts_ptr, row, live, window, TILE, WINDOW)
    pieces = tl.maximum(tl.where(tiles <= ALONE, 1, (tiles + goal - 1) // goal), 1)
    head, index = begin // pieces, begin % pieces
    piece = (tiles + pieces - 1) // pieces
    first = window_first + tl.minimum(index * piece, tiles)
    last = tl.minimum(first + piece, window_first + tiles)
    token = tl.load(starts_ptr + row).to(tl.int64)
    taken = tl.load(starts_ptr + rows)
    k_ptr += head * D
    v_ptr += head * D
    line_ptr = table_ptr + row.to(tl.int64) * table_stride
    page_L = page_of(line_ptr, first * TILE + tl.arange(0, LANES) * (TILE // LANES), keys, BLOCK)
    if PDL:
        if PREFETCH > 0:
            for tile in range(first, tl.minimum(last, first + PREFETCH)):
                prefetch_tile(k_ptr, v_ptr, line_ptr, tile, keys, KV_HEADS * D, BLOCK, TILE, D, D_PAD)
        gdc_wait()
    clear_padding(out_ptr, taken, tokens, out_stride, KV_HEADS * GROUP, D, D_PAD)
    if live:
        g, d = tl.arange(0, G), tl.arange(0, D_PAD)
        inside = (g[:, None] < GROUP) & (d[None, :] < D)
        inner = g[:, None] * D + d[None, :]
        q_GD = tl.load(q_ptr + token * q_stride + head * (GROUP * D) + inner, mask=inside, other=0.0)
        peak_G, mass_G, acc_GD = attend_tiles(
            q_GD, k_ptr, v_ptr, line_ptr, page_L, first, last, keys, window,
            score_scale, softcap, KV_HEADS * D, BLOCK, TILE, LANES, D, SOFTCAP, WINDOW, WIDE, STAGES,
        )  # fmt: skip
        hand_in(
            peak_G, mass_G, acc_GD, part_ptr, arrived_ptr + row * KV_HEADS + head,
            out_ptr + token * out_stride + head * (GROUP * D), value_scale, at - index, 1, 0, index, pieces,
            GROUP, H, D, BUNCH,
        )  # fmt: skip


class Workspace:
    """Where pieces of rows wait for each other, and how many have arrived. One per device and model.

    Sized by `reserve`, which must have seen the largest step before a CUDA graph is captured.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.part = torch.empty(0, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(0, dtype=torch.int32, device=device)
        self.outgrown: list[Tensor] = []

    def reserve(self, elements: int, counters: int) -> None:
        """Make room for this many at least."""
        if self.part.numel() >= elements and self.arrived.numel() >= counters:
            return
        assert self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing(), (
            "run once before capturing"
        )
        self.outgrown += [self.part, self.arrived]  # captured graphs may point there
        with torch.inference_mode(False):
            if self.part.numel() < elements:
                self.part = torch.empty(elements, dtype=torch.float32, device=self.device)
            if self.arrived.numel() < counters:
                self.arrived = torch.zeros(counters, dtype=torch.int32, device=self.device)


def decode(
    q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, workspace: Workspace,
    *, config: PagedDecode, programs: int, fixed: bool = False,
) -> None:  # fmt: skip
    """Attention of the rows with one query, into out_THD; tokens after the last row become zero.

    q_THD may be a part of a wider tensor (any stride of tokens, heads next to each other). `programs` is the
    grid; `fixed` makes a row's result independent of the rest of the step.
    """
    rows, (heads, head_dim), kv_heads = pages.context.shape[0], q_THD.shape[1:], pages.k.shape[2]
    group, block = heads // kv_heads, pages.k.shape[1]
    assert (
        q_THD.stride(1) == out_THD.stride(1) == head_dim
        and pages.k.is_contiguous()
        and pages.v.is_contiguous()
    )
    assert block % LANE_KEYS == 0
    tile = config.warps * LANE_KEYS
    spread = config.alone is not None and not fixed and programs >= 2 * rows * kv_heads > 0
    slots = rows * kv_heads * MOST_PIECES if fixed else programs if spread else 2 * programs
    workspace.reserve(slots * group * (head_dim + 2), rows * kv_heads)
    softcap, pdl = scores.softcap or 0.0, configs.pdl(q_THD.device)
    score_scale = scores.scale * pages.k_scale * (2.0 / softcap if softcap else 1.0) * LOG2_E
    options: dict[str, int] = {"launch_pdl": True} if pdl else {}
    options |= {} if config.registers is None else {"maxnreg": config.registers}
    if spread:
        options |= {"ALONE": (config.alone or 0) // tile}
    else:
        options |= {"MOST": MOST_PIECES, "FIXED": fixed}
    padded, padded_group = power_of_two(head_dim), power_of_two(group)
    (spread_kernel if spread else decode_kernel)[(programs,)](
        q_THD, pages.k, pages.v, pages.table, pages.starts, pages.context, out_THD, workspace.part, workspace.arrived,
        rows, q_THD.shape[0], score_scale, pages.v_scale, softcap * LOG2_E, scores.window or 0,
        pages.table.stride(0), q_THD.stride(0), out_THD.stride(0),
        KV_HEADS=kv_heads, GROUP=group, G=max(16, padded_group), D=head_dim, D_PAD=padded,
        BLOCK=block, ROWS=next(n for n in ROW_STEPS if n >= rows), TILE=tile, LANES=config.warps,
        STAGES=config.stages, LEAST=max(1, config.split // tile), H=padded_group,
        BUNCH=max(1, config.warps * BUNCH_ELEMENTS // (padded_group * padded)),
        SOFTCAP=bool(softcap), WINDOW=scores.window is not None, WIDE=pages.k.numel() >= 1 << 31,
        PDL=pdl, PREFETCH=config.prefetch // tile if q_THD.is_cuda else 0, num_warps=config.warps, **options,
    )  # fmt: skip
