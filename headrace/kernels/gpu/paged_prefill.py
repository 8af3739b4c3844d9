"""Attention of rows with several queries over a paged cache in Triton (FlashAttention-2; Dao 2023).

A program takes ROWS rows of one kv head: ROWS // GROUP queries times the GROUP query heads that share its keys,
so each key and value is loaded once for all of them. Keys that every query of a program sees need no mask; only
the tiles on the diagonal, and at the near edge of a window, are masked. Which programs there are is a list made
on the host, longest first; items of row -1 are none.
"""

import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.choices import PagedPrefill
from headrace.kernels.gpu.paged_decode import in_powers_of_two
from headrace.kernels.gpu.widen import widen
from headrace.kernels.launch import power_of_two
from headrace.kernels.paged import Pages, Scores


@triton.jit
def block_of(line_ptr, key, keys, BLOCK: tl.constexpr, PAGED: tl.constexpr):
    """Blocks that hold keys, 0 beyond the row's end; keys one after the other need none."""
    if PAGED:
        return tl.load(line_ptr + key // BLOCK, mask=key < keys, other=0)
    else:
        return key * 0


@triton.jit
def load_keys(ptr, where_ND, live_N, d, MASKED: tl.constexpr, D: tl.constexpr):
    """Keys or values [KEYS, D_PAD]; zero where not live, and beyond D."""
    if MASKED:
        return tl.load(ptr + where_ND, mask=live_N[:, None] & (d[None, :] < D), other=0.0)
    elif d.shape[0] != D:
        return tl.load(ptr + where_ND, mask=d[None, :] < D, other=0.0)
    else:
        return tl.load(ptr + where_ND)


@triton.jit
def attend_tiles(
    q_MD, peak_M, mass_M, acc_MD, position_M, k_ptr, v_ptr, line_ptr, first, last, nearest, keys, window,
    score_scale, softcap, kv_stride,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, PAGED: tl.constexpr, WIDE: tl.constexpr,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Continue the online softmax over tiles first .. last; no query sees keys before `nearest`."""
    n = tl.arange(0, KEYS)
    d = tl.arange(0, q_MD.shape[1])
    block_N = block_of(line_ptr, first * KEYS + n, keys, BLOCK, PAGED)
    for tile in tl.range(first, last, num_stages=STAGES):
        key_N = tile * KEYS + n
        base_N = block_N.to(tl.int64) if WIDE else block_N
        place_N = base_N * (BLOCK * kv_stride) + (key_N % BLOCK if PAGED else key_N) * kv_stride
        where_ND = place_N[:, None] + d[None, :]
        # The next tile's blocks are looked up a turn ahead, so that only one latency is left in the loop.
        block_N = block_of(line_ptr, key_N + KEYS, keys, BLOCK, PAGED)
        live_N = (key_N < keys) & (key_N >= nearest)
        k_ND = load_keys(k_ptr, where_ND, live_N, d, MASKED, D)
        score = tl.dot(q_MD, tl.trans(widen(k_ND, q_MD.dtype)), input_precision="ieee")
        if SOFTCAP:
            score = softcap - 2.0 * softcap / (1.0 + tl.exp2(score * score_scale))
        if MASKED:
            seen = key_N[None, :] <= position_M[:, None]
            if WINDOW:
                seen = seen & (key_N[None, :] > position_M[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        new_M = tl.maximum(peak_M, tl.max(score, 1) if SOFTCAP else tl.max(score, 1) * score_scale)
        floor_M = tl.where(new_M == float("-inf"), 0.0, new_M) if MASKED else new_M
        p = tl.exp2((score if SOFTCAP else score * score_scale) - floor_M[:, None])
        fade_M = tl.exp2(peak_M - floor_M)
        mass_M = mass_M * fade_M + tl.sum(p, 1)
        acc_MD = acc_MD * fade_M[:, None]
        v_ND = load_keys(v_ptr, where_ND, live_N, d, MASKED, D)
        acc_MD = tl.dot(p.to(q_MD.dtype), widen(v_ND, q_MD.dtype), acc_MD, input_precision="ieee")
        peak_M = new_M
    return peak_M, mass_M, acc_MD


@triton.jit(do_not_specialize=["table_stride", "window"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, context_ptr, work_ptr, out_ptr,
    score_scale, value_scale, softcap, window, table_stride, q_stride, kv_stride, out_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PAGED: tl.constexpr, WIDE: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One item of the work list, one kv head: queries first .. first + ROWS // GROUP of a row."""
    item, head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    row, first = tl.load(work_ptr + 2 * item), tl.load(work_ptr + 2 * item + 1)
    if row < 0:  # a graph has room for more items than most steps have
        return
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
    position_M = offset + query_M
    final = offset + tl.minimum(first + span, queries) - 1  # the last query's position
    k_ptr += head * D
    v_ptr += head * D
    if not PAGED:
        k_ptr += start.to(tl.int64) * kv_stride
        v_ptr += start.to(tl.int64) * kv_stride
    line_ptr = table_ptr + row.to(tl.int64) * table_stride
    peak_M = tl.full([ROWS], float("-inf"), tl.float32)
    mass_M = tl.zeros([ROWS], tl.float32)
    acc_MD = tl.zeros([ROWS, D_PAD], tl.float32)
    begin = 0 * keys
    nearest = begin
    clear = (offset + first + 1) // KEYS  # tiles before this one lie before every query
    if WINDOW:
        nearest = tl.maximum(offset + first - window + 1, 0)
        begin = nearest // KEYS
        edge = tl.minimum((tl.maximum(final - window + 1, 0) + KEYS - 1) // KEYS, clear)
        edge = tl.maximum(edge, begin)
        peak_M, mass_M, acc_MD = attend_tiles(
            q_MD, peak_M, mass_M, acc_MD, position_M, k_ptr, v_ptr, line_ptr, begin, edge, nearest, keys, window,
            score_scale, softcap, kv_stride, BLOCK, KEYS, D, PAGED, WIDE, True, SOFTCAP, WINDOW, STAGES,
        )  # fmt: skip
        begin = edge
    clear = tl.maximum(clear, begin)
    peak_M, mass_M, acc_MD = attend_tiles(
        q_MD, peak_M, mass_M, acc_MD, position_M, k_ptr, v_ptr, line_ptr, begin, clear, nearest, keys, window,
        score_scale, softcap, kv_stride, BLOCK, KEYS, D, PAGED, WIDE, False, SOFTCAP, WINDOW, STAGES,
    )  # fmt: skip
    peak_M, mass_M, acc_MD = attend_tiles(
        q_MD, peak_M, mass_M, acc_MD, position_M, k_ptr, v_ptr, line_ptr, clear, final // KEYS + 1, nearest, keys,
        window, score_scale, softcap, kv_stride, BLOCK, KEYS, D, PAGED, WIDE, True, SOFTCAP, WINDOW, STAGES,
    )  # fmt: skip
    acc_MD = acc_MD * (value_scale / tl.where(mass_M == 0.0, 1.0, mass_M))[:, None]
    tl.store(
        out_ptr + token_M[:, None] * out_stride + inner, acc_MD.to(out_ptr.dtype.element_ty), mask=inside
    )


def prefill(
    q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, work_W2: Tensor,
    *, config: PagedPrefill, fresh: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Attention of the queries in the work list (row, first query), into out_THD.

    q_THD and out_THD may be parts of wider tensors (any stride of tokens, heads next to each other). `fresh` are
    this step's own k and v [T, K, D]: read instead of the pages, for rows that have no keys from earlier steps.
    """
    if config.fetched and fresh is None and configs.gluon():
        from headrace.kernels.gpu import paged_prefill_hopper as hopper

        if config.rows == hopper.ROWS and hopper.fits(q_THD, pages):
            return hopper.prefill(q_THD, pages, scores, out_THD, work_W2)
    (heads, head_dim), kv_heads = q_THD.shape[1:], pages.k.shape[2]
    k, v = fresh or (pages.k, pages.v)
    kv_stride = kv_heads * head_dim if fresh is None else k.stride(0)
    assert q_THD.stride(1) == out_THD.stride(1) == k.stride(-2) == v.stride(-2) == head_dim
    assert fresh is not None or (k.is_contiguous() and v.is_contiguous())
    assert k.stride() == v.stride() and pages.k.shape[1] >= 16
    score_scale, softcap = in_powers_of_two(pages, scores)
    options = {} if config.registers is None else {"maxnreg": config.registers}
    prefill_kernel[(len(work_W2) * kv_heads,)](
        q_THD, k, v, pages.table, pages.starts, pages.context, work_W2, out_THD,
        score_scale, pages.v_scale, softcap, scores.window or 0,
        pages.table.stride(0), q_THD.stride(0), kv_stride, out_THD.stride(0),
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, D=head_dim, D_PAD=max(16, power_of_two(head_dim)),
        BLOCK=pages.k.shape[1], ROWS=config.rows, KEYS=config.keys, PAGED=fresh is None,
        WIDE=k.numel() >= 1 << 31, SOFTCAP=bool(softcap), WINDOW=scores.window is not None, STAGES=config.stages,
        num_warps=config.warps, **options,
    )  # fmt: skip
