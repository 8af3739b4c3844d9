"""Attention over a paged cache in Triton whose result for a query depends on that query and its keys alone.

Not on the rows that share the step, on how a prompt was cut into chunks, nor on whether the query came with others
(a chunk) or by itself (decoding). So both kernels here do the same sums in the same order: keys are taken KEYS at a
time from multiples of KEYS, every SPLIT keys an online softmax of its own begins (FlashAttention-2; Dao 2023), and
the splits are merged from the first to the last. A chunk's program walks through all of them; a decoding row's
splits are spread over programs, and whoever arrives last merges what they left in a workspace.

What a tile adds to a query that sees none of its keys is exactly nothing, so it does not matter which tiles a
program runs beyond those. Multiplications and additions are not fused, and tiles have one shape for both kernels:
nothing that the compiler may choose can make a difference between them.
"""

import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.choices import PagedFixed
from headrace.kernels.gpu.paged_decode import ROW_STEPS, Workspace, clear_padding, in_powers_of_two
from headrace.kernels.gpu.widen import widen
from headrace.kernels.launch import power_of_two
from headrace.kernels.paged import Pages, Scores

COMPILED = {"enable_fp_fusion": False}


@triton.jit
def attend_split(
    q_MD, position_M, k_ptr, v_ptr, line_ptr, first, last, nearest, keys, window, score_scale, softcap,
    TOKEN: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Peak [M], mass [M] and weighted values [M, D] of tiles first .. last; the peak in powers of two.

    Keys before `nearest` and from `keys` on are not read.
    """
    n, d = tl.arange(0, KEYS), tl.arange(0, q_MD.shape[1])
    peak_M = tl.full([q_MD.shape[0]], float("-inf"), tl.float32)
    mass_M = tl.zeros([q_MD.shape[0]], tl.float32)
    acc_MD = tl.zeros([q_MD.shape[0], q_MD.shape[1]], tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        key_N = tile * KEYS + n
        live_N = (key_N < keys) & (key_N >= nearest)
        block_N = tl.load(line_ptr + key_N // BLOCK, mask=live_N, other=0)
        block_N = block_N.to(tl.int64) if WIDE else block_N
        where_ND = (block_N * (BLOCK * TOKEN) + key_N % BLOCK * TOKEN)[:, None] + d[None, :]
        live_ND = live_N[:, None] & (d[None, :] < D)
        k_ND = tl.load(k_ptr + where_ND, mask=live_ND, other=0.0)
        score = tl.dot(q_MD, tl.trans(widen(k_ND, q_MD.dtype)), input_precision="ieee") * score_scale
        if SOFTCAP:
            score = softcap - 2.0 * softcap / (1.0 + tl.exp2(score))
        seen = key_N[None, :] <= position_M[:, None]
        if WINDOW:
            seen = seen & (key_N[None, :] > position_M[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
        new_M = tl.maximum(peak_M, tl.max(score, 1))
        floor_M = tl.where(new_M == float("-inf"), 0.0, new_M)
        p = tl.exp2(score - floor_M[:, None])
        fade_M = tl.exp2(peak_M - floor_M)
        mass_M = mass_M * fade_M + tl.sum(p, 1)
        acc_MD = acc_MD * fade_M[:, None]
        v_ND = tl.load(v_ptr + where_ND, mask=live_ND, other=0.0)
        acc_MD = tl.dot(p.to(q_MD.dtype), widen(v_ND, q_MD.dtype), acc_MD, input_precision="ieee")
        peak_M = new_M
    return peak_M, mass_M, acc_MD


@triton.jit
def merge(peak_M, mass_M, acc_MD, peak, mass, acc):
    """Add one split's sums to those of all before it."""
    new_M = tl.maximum(peak_M, peak)
    floor_M = tl.where(new_M == float("-inf"), 0.0, new_M)
    before_M, fade_M = tl.exp2(peak_M - floor_M), tl.exp2(peak - floor_M)
    return new_M, mass_M * before_M + mass * fade_M, acc_MD * before_M[:, None] + acc * fade_M[:, None]


@triton.jit
def weighted(mass_M, acc_MD, value_scale):
    """The output; zero where no key was seen."""
    return acc_MD * (value_scale / tl.where(mass_M == 0.0, 1.0, mass_M))[:, None]


@triton.jit
def splits_of(context_ptr, starts_ptr, row, inside, window, SPLIT: tl.constexpr, WINDOW: tl.constexpr):
    """(keys, first split that is seen, splits) of rows; no splits for rows that have not exactly one query."""
    keys = tl.load(context_ptr + row, mask=inside, other=0)
    start = tl.load(starts_ptr + row, mask=inside, other=0)
    queries = tl.load(starts_ptr + row + 1, mask=inside, other=0) - start
    first = keys * 0
    if WINDOW:
        first = tl.maximum(keys - window, 0) // SPLIT
    splits = tl.maximum((keys + SPLIT - 1) // SPLIT - first, 1)
    return keys, first, tl.where(queries == 1, splits, 0)


@triton.jit
def merge_all(
    part_ptr, out_ptr, value_scale, step, pieces, GROUP: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    D_PAD: tl.constexpr,
):  # fmt: skip
    """Merge what the splits of a (row, kv head) left, `step` places apart, and write its output."""
    h, d = tl.arange(0, H), tl.arange(0, D_PAD)
    inner = h[:, None] * D + d[None, :]
    inside = (h[:, None] < GROUP) & (d[None, :] < D)
    peak_H = tl.full([H], float("-inf"), tl.float32)
    mass_H = tl.zeros([H], tl.float32)
    acc_HD = tl.zeros([H, D_PAD], tl.float32)
    for piece in tl.range(0, pieces, num_stages=1):
        # Other multiprocessors wrote these: read them where all meet, in L2.
        here = part_ptr + piece * (step * GROUP * (D + 2))
        edge = here + GROUP * D + h
        acc = tl.load(here + inner, mask=inside, other=0.0, cache_modifier=".cg")
        peak = tl.load(edge, mask=h < GROUP, other=float("-inf"), cache_modifier=".cg")
        mass = tl.load(edge + GROUP, mask=h < GROUP, other=0.0, cache_modifier=".cg")
        peak_H, mass_H, acc_HD = merge(peak_H, mass_H, acc_HD, peak, mass, acc)
    out = weighted(mass_H, acc_HD, value_scale)
    tl.store(out_ptr + inner, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "tokens", "table_stride", "window"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr, out_ptr, part_ptr, arrived_ptr,
    rows, tokens, score_scale, value_scale, softcap, window, table_stride, q_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK: tl.constexpr, ALL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
    WIDE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every program takes some (row, split, kv head), counted in this order. ALL rows can be planned for."""
    row_R = tl.arange(0, ALL)
    _, _, splits_R = splits_of(context_ptr, starts_ptr, row_R, row_R < rows, window, SPLIT, WINDOW)
    end_R = tl.cumsum(splits_R, 0)
    units = tl.max(end_R) * KV_HEADS
    taken = tl.load(starts_ptr + rows)
    clear_padding(out_ptr, taken, tokens, out_stride, KV_HEADS * GROUP, D, D_PAD)
    m, d = tl.arange(0, ROWS), tl.arange(0, D_PAD)
    inner = m[:, None] * D + d[None, :]
    inside = (m[:, None] < GROUP) & (d[None, :] < D)
    unit = tl.program_id(0)
    while unit < units:
        head, at = unit % KV_HEADS, unit // KV_HEADS
        row = tl.sum((end_R <= at).to(tl.int32))
        base = tl.max(tl.where(end_R <= at, end_R, 0))
        keys, nearest_split, pieces = splits_of(
            context_ptr, starts_ptr, row, row < rows, window, SPLIT, WINDOW
        )
        index = at - base
        nearest = keys * 0
        if WINDOW:
            nearest = tl.maximum(keys - window, 0)
        begin = (nearest_split + index) * SPLIT
        first = tl.maximum(begin, nearest) // KEYS
        last = (tl.minimum(begin + SPLIT, keys) + KEYS - 1) // KEYS
        token = tl.load(starts_ptr + row).to(tl.int64)
        q_MD = tl.load(q_ptr + token * q_stride + head * (GROUP * D) + inner, mask=inside, other=0.0)
        peak_M, mass_M, acc_MD = attend_split(
            q_MD, m * 0 + keys - 1, k_ptr + head * D, v_ptr + head * D, table_ptr + row.to(tl.int64) * table_stride,
            first, last, nearest, keys, window, score_scale, softcap,
            KV_HEADS * D, BLOCK, KEYS, D, WIDE, SOFTCAP, WINDOW, STAGES,
        )  # fmt: skip
        to_ptr = out_ptr + token * out_stride + head * (GROUP * D)
        if pieces == 1:
            out = weighted(mass_M, acc_MD, value_scale)
            tl.store(to_ptr + inner, out.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            here = part_ptr + unit.to(tl.int64) * (GROUP * (D + 2))
            tl.store(here + inner, acc_MD, mask=inside)
            tl.store(here + GROUP * D + m, peak_M, mask=m < GROUP)
            tl.store(here + GROUP * (D + 1) + m, mass_M, mask=m < GROUP)
            tl.debug_barrier()  # every thread's numbers are written before one thread says so
            counter = arrived_ptr + row * KV_HEADS + head
            if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == pieces - 1:
                slot = (base * KV_HEADS + head).to(tl.int64) * (GROUP * (D + 2))
                merge_all(part_ptr + slot, to_ptr, value_scale, KV_HEADS, pieces, GROUP, H, D, D_PAD)
                tl.store(counter, 0)  # for the next launch
        unit += tl.num_programs(0)


@triton.jit(do_not_specialize=["table_stride", "window"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr, work_ptr, out_ptr,
    score_scale, value_scale, softcap, window, table_stride, q_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One item of the work list, one kv head: queries first .. first + ROWS // GROUP of a row, split after split."""
    item, head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    row, first = tl.load(work_ptr + 2 * item), tl.load(work_ptr + 2 * item + 1)
    start = tl.load(starts_ptr + row)
    queries = tl.load(starts_ptr + row + 1) - start
    keys = tl.load(context_ptr + row)
    span: tl.constexpr = ROWS // GROUP
    m, d = tl.arange(0, ROWS), tl.arange(0, D_PAD)
    query_M = first + m // GROUP
    inside = ((query_M < queries) & (m < span * GROUP))[:, None] & (d[None, :] < D)
    token_M = (start + query_M).to(tl.int64)
    inner = (head * GROUP + m % GROUP)[:, None] * D + d[None, :]
    q_MD = tl.load(q_ptr + token_M[:, None] * q_stride + inner, mask=inside, other=0.0)
    offset = keys - queries
    stop = offset + tl.minimum(first + span, queries)  # after the last query's position
    nearest = keys * 0
    if WINDOW:
        nearest = tl.maximum(offset + first - window + 1, 0)
    peak_M = tl.full([ROWS], float("-inf"), tl.float32)
    mass_M = tl.zeros([ROWS], tl.float32)
    acc_MD = tl.zeros([ROWS, D_PAD], tl.float32)
    for split in tl.range(nearest // SPLIT, (stop + SPLIT - 1) // SPLIT, num_stages=1):
        begin = split * SPLIT
        peak, mass, acc = attend_split(
            q_MD, offset + query_M, k_ptr + head * D, v_ptr + head * D,
            table_ptr + row.to(tl.int64) * table_stride, tl.maximum(begin, nearest) // KEYS,
            (tl.minimum(begin + SPLIT, stop) + KEYS - 1) // KEYS, nearest, keys, window, score_scale, softcap,
            KV_HEADS * D, BLOCK, KEYS, D, WIDE, SOFTCAP, WINDOW, STAGES,
        )  # fmt: skip
        peak_M, mass_M, acc_MD = merge(peak_M, mass_M, acc_MD, peak, mass, acc)
    out = weighted(mass_M, acc_MD, value_scale)
    tl.store(out_ptr + token_M[:, None] * out_stride + inner, out.to(out_ptr.dtype.element_ty), mask=inside)


def shared(
    q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, config: PagedFixed
) -> dict[str, object]:
    """Arguments by name that both kernels take."""
    (heads, head_dim), kv_heads = q_THD.shape[1:], pages.k.shape[2]
    assert q_THD.stride(1) == out_THD.stride(1) == head_dim
    assert pages.k.is_contiguous() and pages.v.is_contiguous()
    assert config.split % config.keys == 0 and heads // kv_heads <= config.rows
    score_scale, softcap = in_powers_of_two(pages, scores)
    return {
        "score_scale": score_scale,
        "value_scale": pages.v_scale,
        "softcap": softcap,
        "window": scores.window or 0,
        "table_stride": pages.table.stride(0),
        "q_stride": q_THD.stride(0),
        "out_stride": out_THD.stride(0),
        "KV_HEADS": kv_heads,
        "GROUP": heads // kv_heads,
        "D": head_dim,
        "D_PAD": max(16, power_of_two(head_dim)),
        "BLOCK": pages.k.shape[1],
        "ROWS": config.rows,
        "KEYS": config.keys,
        "SPLIT": config.split,
        "WIDE": pages.k.numel() >= 1 << 31,
        "SOFTCAP": bool(softcap),
        "WINDOW": scores.window is not None,
        "STAGES": config.stages,
        "num_warps": config.warps,
        **(COMPILED if q_THD.is_cuda else {}),
    }


def decode(
    q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, workspace: Workspace,
    *, config: PagedFixed, programs: int,
) -> None:  # fmt: skip
    """Attention of the rows with one query, into out_THD; tokens after the last row become zero.

    q_THD may be a part of a wider tensor (any stride of tokens, heads next to each other). `programs` is the grid,
    which changes no result.
    """
    rows, kv_heads, group = pages.context.shape[0], pages.k.shape[2], q_THD.shape[1] // pages.k.shape[2]
    splits = triton.cdiv(pages.table.shape[1] * pages.k.shape[1], config.split)
    places = (
        power_of_two(rows * kv_heads * splits) if splits > 1 else 0
    )  # as rules.paged_fixed_elements counts
    workspace.reserve(places * group * (q_THD.shape[2] + 2), power_of_two(rows * kv_heads))
    decode_kernel[(programs,)](
        q_THD, pages.k, pages.v, pages.table, pages.starts, pages.context, out_THD, workspace.part, workspace.arrived,
        rows, q_THD.shape[0], H=power_of_two(group), ALL=next(n for n in ROW_STEPS if n >= rows),
        **shared(q_THD, pages, scores, out_THD, config),
    )  # fmt: skip


def prefill(
    q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, work_W2: Tensor, *, config: PagedFixed
) -> None:
    """Attention of the queries in the work list (row, first query), `config.rows` // group of them an item."""
    prefill_kernel[(len(work_W2) * pages.k.shape[2],)](
        q_THD, pages.k, pages.v, pages.table, pages.starts, pages.context, work_W2, out_THD,
        **shared(q_THD, pages, scores, out_THD, config),
    )  # fmt: skip
