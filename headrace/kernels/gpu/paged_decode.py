"""Attention of rows with one query over a paged cache in Triton: bound by the bytes of keys and values.

The work of a launch is cut into equal shares on the device, from `context`, so the grid depends on nothing but
the chip: one CUDA graph serves any mixture of lengths. A share may end inside a row; what it has then goes to
a workspace, and whoever arrives last at a (row, kv head) adds the pieces up in order (flash-decoding with the
stream-K decomposition; Dao et al. 2023, Osama et al. 2023).

Work is counted in tiles of TILE keys, laid out in a line, row after row. Every kv head has such a line; the
programs of all heads walk along it side by side, so that a page is looked up, and a token's keys are read from
memory, for all of them at about the same time. A line is cut for its programs:
    whole  (few rows)   every row into even pieces, one piece a program
    else   (many rows)  every `quota` tiles, wherever that falls

All query heads of a kv head are rows of one matrix product. A tile's keys are dealt out to the warps ("lanes",
L), each with a softmax of its own, so that the loop needs no exchange between warps; lanes meet at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels import configs
from headrace.kernels.choices import PagedDecode
from headrace.kernels.gpu.product import ask_for_lines
from headrace.kernels.gpu.widen import widen
from headrace.kernels.launch import power_of_two
from headrace.kernels.paged import Pages, Scores

LOG2_E = 1.4426950408889634
MOST_PIECES = 64  # of one row where it is cut evenly: more take longer to add up than they save
ROW_STEPS = (8, 32, 512, 1024, 4096, 32768)  # rows a compiled kernel can plan for
BUNCH_ELEMENTS = 2048  # of pieces, that a warp reads at once when it adds them up
LANE_KEYS = 16  # keys of a tile per lane: one matrix instruction's depth, one block at least


@triton.jit
def tiles_of(
    context_ptr, starts_ptr, row, inside, window, TILE: tl.constexpr, WINDOW: tl.constexpr
):  # fmt: skip
    """(keys, first tile in the window, tiles) of rows; no tiles for rows that have not exactly one query."""
    keys = tl.load(context_ptr + row, mask=inside, other=0)
    start = tl.load(starts_ptr + row, mask=inside, other=0)
    queries = tl.load(starts_ptr + row + 1, mask=inside, other=0) - start
    first = keys * 0
    if WINDOW:
        first = tl.maximum(keys - window, 0) // TILE
    tiles = (keys + TILE - 1) // TILE - first
    return keys, first, tl.where(queries == 1, tiles, 0)


@triton.jit
def share_of(
    tiles_R, KV_HEADS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, SPARE: tl.constexpr = 0
):  # fmt: skip
    """How a head's line is cut: (whole, tiles per piece, units per program, first row, its first unit, end).

    A unit is a piece where rows are cut into pieces (`whole`), else a tile. With a SPARE program for each row, and more
    of them than that, rows are always cut into pieces.
    """
    programs = tl.num_programs(0) // KV_HEADS
    total = tl.sum(tiles_R)
    goal = tl.maximum((total + programs - SPARE - 1) // (programs - SPARE), LEAST)
    goal = tl.maximum(goal, (tl.max(tiles_R) + MOST - 1) // MOST)
    pieces_R = (tiles_R + goal - 1) // goal
    whole = tl.sum(pieces_R) <= programs
    size_R = tl.where(whole, pieces_R, tiles_R)
    quota = tl.where(whole, 1, goal)
    end_R = tl.cumsum(size_R, 0)
    at = tl.program_id(0) // KV_HEADS * quota
    row = tl.sum((end_R <= at).to(tl.int32))
    base = tl.max(tl.where(end_R <= at, end_R, 0))
    return whole, goal, quota, row, base, tl.max(end_R)


@triton.jit
def page_of(line_ptr, key, keys, BLOCK: tl.constexpr):
    """Blocks that hold keys; 0 beyond the row's end, where table entries mean nothing."""
    return tl.load(line_ptr + key // BLOCK, mask=key < keys, other=0)


@triton.jit
def capped(score, softcap, SOFTCAP: tl.constexpr):
    """Scores, soft-capped where that is asked for; in powers of two, as `in_powers_of_two` has them."""
    if SOFTCAP:
        score = softcap - 2.0 * softcap / (1.0 + tl.exp2(score))
    return score


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
        score = (
            tl.dot(q_LGD, tl.trans(widen(k_LND, q_GD.dtype), 0, 2, 1), input_precision="ieee") * score_scale
        )
        score = tl.where(seen_LN[:, None, :], capped(score, softcap, SOFTCAP), float("-inf"))
        new_LG = tl.maximum(peak_LG, tl.max(score, 2))
        floor_LG = tl.where(new_LG == float("-inf"), 0.0, new_LG)
        p = tl.exp2(score - floor_LG[:, :, None])
        fade_LG = tl.exp2(peak_LG - floor_LG)
        v_LND = tl.load(v_ptr + where, mask=live, other=0.0)
        mass_LGN = mass_LGN * fade_LG[:, :, None] + p
        acc_LGD = acc_LGD * fade_LG[:, :, None]
        acc_LGD = tl.dot(p.to(q_GD.dtype), widen(v_LND, q_GD.dtype), acc_LGD, input_precision="ieee")
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
def clear_token(out_ptr, token, out_stride, heads, D: tl.constexpr, D_PAD: tl.constexpr):
    """Zero for all heads of a token."""
    d = tl.arange(0, D_PAD)
    for head in range(heads):
        where = out_ptr + token.to(tl.int64) * out_stride + head * D + d
        tl.store(where, tl.zeros([D_PAD], out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def clear_padding(out_ptr, token, tokens, out_stride, heads, D: tl.constexpr, D_PAD: tl.constexpr):
    """Zero for this program's part of the tokens from `token` on, so that nothing undefined goes to later layers."""
    token += tl.program_id(0)
    while token < tokens:
        clear_token(out_ptr, token, out_stride, heads, D, D_PAD)
        token += tl.num_programs(0)


@triton.jit
def clear_empty(
    context_ptr, starts_ptr, out_ptr, rows, out_stride, heads, D: tl.constexpr, D_PAD: tl.constexpr
):  # fmt: skip
    """Zero for this program's part of the rows that have a query and no keys, such as a graph's padding."""
    row = tl.program_id(0)
    while row < rows:
        token = tl.load(starts_ptr + row)
        if (tl.load(context_ptr + row) == 0) & (tl.load(starts_ptr + row + 1) - token == 1):
            clear_token(out_ptr, token, out_stride, heads, D, D_PAD)
        row += tl.num_programs(0)


@triton.jit
def ask_for_keys(
    k_ptr, v_ptr, line_ptr, first, keys, TOKEN: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr
):
    """Have 64 keys and values of a row from `first` on, of those that it has, brought to L2.

    Its table may be about to be written: what lies there is some block's id, so that at worst others are asked for;
    and it is read past L1, where it must not be found again.
    """
    LINE: tl.constexpr = 1024 // k_ptr.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2((D + LINE - 1) // LINE)
    key = tl.minimum(first + tl.arange(0, 64), keys - 1)
    page = tl.load(line_ptr + key // BLOCK, cache_modifier=".cg").to(tl.int64)
    d = tl.minimum(tl.arange(0, LINES) * LINE, D - 1)
    where = ((page * BLOCK + key % BLOCK) * TOKEN)[:, None] + d[None, :]
    ask_for_lines(k_ptr + where)
    ask_for_lines(v_ptr + where)


@triton.jit(do_not_specialize=["rows", "tokens", "table_stride", "window"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr, out_ptr, part_ptr, arrived_ptr,
    rows, tokens, score_scale, value_scale, softcap, window, table_stride, q_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr, STAGES: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    WIDE: tl.constexpr, PDL: tl.constexpr, H: tl.constexpr, BUNCH: tl.constexpr,
):  # fmt: skip
    """One program's share: see the head of this file. G, H and D_PAD are GROUP and D padded to powers of two."""
    row_R = tl.arange(0, ROWS)
    _, _, tiles_R = tiles_of(context_ptr, starts_ptr, row_R, row_R < rows, window, TILE, WINDOW)
    whole, goal, quota, row, base, end = share_of(tiles_R, KV_HEADS, LEAST, MOST)
    head = tl.program_id(0) % KV_HEADS
    at = tl.program_id(0) // KV_HEADS * quota
    stop = tl.minimum(at + quota, end)
    k_ptr += head * D
    v_ptr += head * D
    g, d = tl.arange(0, G), tl.arange(0, D_PAD)
    inner = g[:, None] * D + d[None, :]
    inside = (g[:, None] < GROUP) & (d[None, :] < D)
    taken = tl.load(starts_ptr + rows)
    if PDL:
        # What is above comes from the host: it was there before the kernel that this launch may overlap.
        gdc_launch_dependents()
        if whole & (at < stop):
            keys, first, tiles = tiles_of(context_ptr, starts_ptr, row, row < rows, window, TILE, WINDOW)
            size = (tiles + goal - 1) // goal
            first += (at - base) * ((tiles + size - 1) // size)
            line_ptr = table_ptr + row.to(tl.int64) * table_stride
            ask_for_keys(k_ptr, v_ptr, line_ptr, first * TILE, keys, KV_HEADS * D, BLOCK, D)
        gdc_wait()
    clear_padding(out_ptr, taken, tokens, out_stride, KV_HEADS * GROUP, D, D_PAD)
    clear_empty(context_ptr, starts_ptr, out_ptr, rows, out_stride, KV_HEADS * GROUP, D, D_PAD)
    while at < stop:
        keys, window_first, tiles = tiles_of(context_ptr, starts_ptr, row, row < rows, window, TILE, WINDOW)
        size = tl.where(whole, (tiles + goal - 1) // goal, tiles)  # units of this row
        if at >= base + size:
            base += size
            row += 1
        else:
            begin = at - base
            # Piece i's slot is slot + step * i (+ shift for i = 0). Where a piece is a unit, that is its number;
            # else a program has two: one for the piece it enters a row with, one for the piece it leaves with.
            step, shift = tl.where(whole, 1, 2) * KV_HEADS, tl.where(whole, 0, 1) * KV_HEADS
            if whole:
                pieces, index, slot = size, begin, base * KV_HEADS + head
                units = tl.minimum(size, 1)
                piece = (tiles + size - 1) // size
                first = tl.minimum(begin * piece, tiles)
                last = tl.minimum(first + piece, tiles)
            else:
                pieces = (base + size - 1) // quota - base // quota + 1
                index, slot = at // quota - base // quota, 2 * (base // quota) * KV_HEADS + head
                units = tl.minimum(size - begin, stop - at)
                first, last = begin, begin + units
            token = tl.load(starts_ptr + row).to(tl.int64)
            q_GD = tl.load(q_ptr + token * q_stride + head * (GROUP * D) + inner, mask=inside, other=0.0)
            line_ptr = table_ptr + row.to(tl.int64) * table_stride
            first += window_first
            page_L = page_of(line_ptr, first * TILE + tl.arange(0, LANES) * (TILE // LANES), keys, BLOCK)
            peak_G, mass_G, acc_GD = attend_tiles(
                q_GD, k_ptr, v_ptr, line_ptr, page_L, first, window_first + last, keys, window,
                score_scale, softcap, KV_HEADS * D, BLOCK, TILE, LANES, D, SOFTCAP, WINDOW, WIDE, STAGES,
            )  # fmt: skip
            hand_in(
                peak_G, mass_G, acc_GD, part_ptr, arrived_ptr + row * KV_HEADS + head,
                out_ptr + token * out_stride + head * (GROUP * D), value_scale, slot, step, shift, index, pieces,
                GROUP, H, D, BUNCH,
            )  # fmt: skip
            at += units


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


def in_powers_of_two(pages: Pages, scores: Scores) -> tuple[float, float]:
    """(what products of queries and keys are multiplied by, the soft cap or 0) for kernels that use exp2."""
    softcap = scores.softcap or 0.0
    scale = scores.scale * pages.k_scale * (2.0 / softcap if softcap else 1.0) * LOG2_E
    return scale, softcap * LOG2_E


def decode(
    q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, workspace: Workspace,
    *, config: PagedDecode, programs: int,
) -> None:  # fmt: skip
    """Attention of the rows with one query, into out_THD; tokens after the last row become zero.

    q_THD may be a part of a wider tensor (any stride of tokens, heads next to each other). `programs` is the
    grid.
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
    programs = max(programs // kv_heads, 1) * kv_heads
    workspace.reserve(2 * programs * group * (head_dim + 2), rows * kv_heads)
    (score_scale, softcap), pdl = in_powers_of_two(pages, scores), configs.pdl(q_THD.device)
    padded, padded_group = max(16, power_of_two(head_dim)), power_of_two(group)
    decode_kernel[(programs,)](
        q_THD, pages.k, pages.v, pages.table, pages.starts, pages.context, out_THD, workspace.part, workspace.arrived,
        rows, q_THD.shape[0], score_scale, pages.v_scale, softcap, scores.window or 0,
        pages.table.stride(0), q_THD.stride(0), out_THD.stride(0),
        KV_HEADS=kv_heads, GROUP=group, G=max(16, padded_group), D=head_dim, D_PAD=padded,
        BLOCK=block, ROWS=next(n for n in ROW_STEPS if n >= rows), TILE=tile, LANES=config.warps,
        STAGES=config.stages, LEAST=max(1, config.split // tile), H=padded_group,
        MOST=MOST_PIECES, BUNCH=max(1, config.warps * BUNCH_ELEMENTS // (padded_group * padded)),
        SOFTCAP=bool(softcap), WINDOW=scores.window is not None, WIDE=pages.k.numel() >= 1 << 31,
        PDL=pdl, num_warps=config.warps, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
