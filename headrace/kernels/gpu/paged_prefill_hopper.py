"""Paged prefill attention for compute capability 9.0 in Gluon: one warp fetches, two groups of four compute.

As paged_prefill.py, which hands over what this takes. What plain Triton cannot say: queries and pages are fetched by
TMA, which needs one thread, into rings of STAGES tiles; both groups of warps take their half of the rows of the same
tiles, so that one's softmax runs beside the other's products; and a tile's scores and the weighted values of the tile
before are under way together (FlashAttention-3, sections 3.1 and 3.2; Shah et al. 2024). The programs are as many as
the device has multiprocessors, and fetch the next unit's tiles while the last one's are in work.

A unit is an item of the list for one kv head. M rows of a group of warps (queries x heads that share a kv head), N
keys of a tile, D head size, in HALVES of 64: what one row of TMA's swizzled layout holds.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from headrace.kernels import configs
from headrace.kernels.gpu.gluon import barrier, reinterpret
from headrace.kernels.gpu.paged_decode import in_powers_of_two
from headrace.kernels.gpu.paged_prefill_fetch import HALF, fetch, unit_of
from headrace.kernels.paged import Pages, Scores

ROWS, KEYS, STAGES = 128, 128, 2
"""Of both groups together; of a tile; tiles in a ring. With a head size of 128 they fill a multiprocessor's memory."""


@gluon.jit
def keep_values(
    v_s, stage, page, first, last, HALVES: gl.constexpr, PAGES: gl.constexpr, BLOCK: gl.constexpr
):  # fmt: skip
    """Zero for a page's values but first .. last: the others are not this row's any more and need not be finite.

    Both groups write the same zeros; neither reads before it has written its own.
    """
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.expand_dims(gl.arange(0, BLOCK, gl.SliceLayout(1, layout)), 1)
    for half in gl.static_range(HALVES):
        place = v_s.index((stage * HALVES + half) * PAGES + page)
        values = place.load(layout)
        place.store(gl.where((row >= first) & (row < last), values, gl.zeros_like(values)))
    fence_async_shared()
    barrier()


@gluon.jit
def begin_scores(q_tiles, k_tiles, first_q, first_k, zero, HALVES: gl.constexpr):
    """Start q @ k.T of a tile."""
    scores = warpgroup_mma(
        q_tiles.index(first_q), k_tiles.index(first_k).permute((1, 0)), zero, use_acc=False, is_async=True
    )
    for half in gl.static_range(1, HALVES):
        scores = warpgroup_mma(
            q_tiles.index(first_q + half),
            k_tiles.index(first_k + half).permute((1, 0)),
            scores,
            is_async=True,
        )
    return scores


@gluon.jit
def soften(
    score, peak_M, position_M, tile, window, score_scale, softcap,
    N: gl.constexpr, MASKED: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """(weights [M, N], their sums [M], new peaks [M], what older sums fade by [M]); peaks in powers of two."""
    if SOFTCAP:
        score = softcap - 2.0 * softcap / (1.0 + gl.exp2(score * score_scale))
    if MASKED:
        key_N = tile * N + gl.arange(0, N, gl.SliceLayout(0, layout))
        seen = key_N[None, :] <= position_M[:, None]
        if WINDOW:
            seen = seen & (key_N[None, :] > position_M[:, None] - window)
        score = gl.where(seen, score, float("-inf"))
    new_M = gl.maximum(peak_M, gl.max(score, 1) if SOFTCAP else gl.max(score, 1) * score_scale)
    floor_M = gl.where(new_M == float("-inf"), 0.0, new_M) if MASKED else new_M
    p = gl.exp2((score if SOFTCAP else score * score_scale) - floor_M[:, None])
    return p, gl.sum(p, 1), new_M, gl.exp2(peak_M - floor_M)


@gluon.jit
def weigh(p, v_tiles, first_v, low, high, HALVES: gl.constexpr, values_l: gl.constexpr):
    """Start adding weighted values to both halves of the sums; `high` is `low` where there is one half."""
    weights = gl.convert_layout(p, gl.DotOperandLayout(0, values_l, 2))
    low = warpgroup_mma(weights, v_tiles.index(first_v), low, is_async=True)
    if HALVES == 2:
        high = warpgroup_mma(weights, v_tiles.index(first_v + 1), high, is_async=True)
    return low, high


@gluon.jit
def turns(
    first, last, turn, p, mass_M, peak_M, low, high, position_M, zero, window, score_scale, softcap,
    q_tiles, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, first_q,
    N: gl.constexpr, HALVES: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr, SOFTCAP: gl.constexpr,
    WINDOW: gl.constexpr, scores_l: gl.constexpr, values_l: gl.constexpr,
):  # fmt: skip
    """Tiles first .. last: each one's scores beside the weighted values of the tile before, whose weights are p."""
    for tile in range(first, last):
        stage, before = turn % STAGES, (turn - 1) % STAGES
        mbarrier.wait(k_ready.index(stage), turn // STAGES & 1)
        scores = begin_scores(q_tiles, k_tiles, first_q, stage * HALVES, zero, HALVES)
        mbarrier.wait(v_ready.index(before), (turn - 1) // STAGES & 1)
        low, high = weigh(p, v_tiles, before * HALVES, low, high, HALVES, values_l)
        score = warpgroup_mma_wait(HALVES, deps=[scores])
        barrier()
        mbarrier.arrive(k_free.index(stage), count=1)
        weight, sum_M, peak_M, fade_M = soften(
            score, peak_M, position_M, tile, window, score_scale, softcap, N, MASKED, SOFTCAP, WINDOW, scores_l
        )  # fmt: skip
        mass_M = mass_M * fade_M + sum_M
        fade_M = gl.convert_layout(fade_M, gl.SliceLayout(1, values_l))
        if HALVES == 2:
            low, high = warpgroup_mma_wait(0, deps=[low, high])
            high = high * fade_M[:, None]
        else:
            low = warpgroup_mma_wait(0, deps=[low])
        barrier()
        mbarrier.arrive(v_free.index(before), count=1)
        low = low * fade_M[:, None]
        p = weight.to(p.dtype)
        turn += 1
    return turn, p, mass_M, peak_M, low, high


@gluon.jit
def attend(
    starts_ptr, context_ptr, work_ptr, out_ptr, score_scale, value_scale, softcap, window, out_stride, units,
    q_tiles, k_tiles, v_tiles, v_s, q_ready, q_free, k_ready, k_free, v_ready, v_free,
    WHO: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, M: gl.constexpr, D: gl.constexpr,
    BLOCK: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """The part of a group of warps that computes: rows WHO * M and on of every unit of this program."""
    HALVES: gl.constexpr = D // HALF
    SPAN: gl.constexpr = M // GROUP
    PAGES: gl.constexpr = N // BLOCK
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    scores_l: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    values_l: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    zero = gl.zeros([M, N], gl.float32, scores_l)
    turn = 0
    taken = 0
    for lap in range(gl.cdiv(units, gl.num_programs(0))):
        _row, head, first, start, queries, keys, nearest, begin, edge, clear, end = unit_of(
            work_ptr, starts_ptr, context_ptr, lap, units, window, KV_HEADS, 2 * SPAN, N, WINDOW
        )
        if begin < end:
            place = taken % 2
            first_q = (place * 2 + WHO) * HALVES
            first += WHO * SPAN
            position_M = keys - queries + first + gl.arange(0, M, gl.SliceLayout(1, scores_l)) // GROUP
            stage = turn % STAGES
            mbarrier.wait(q_ready.index(place), taken // 2 & 1)
            mbarrier.wait(k_ready.index(stage), turn // STAGES & 1)
            scores = begin_scores(q_tiles, k_tiles, first_q, stage * HALVES, zero, HALVES)
            score = warpgroup_mma_wait(0, deps=[scores])
            barrier()
            mbarrier.arrive(k_free.index(stage), count=1)
            peak_M = gl.full([M], float("-inf"), gl.float32, gl.SliceLayout(1, scores_l))
            weight, mass_M, peak_M, _fade = soften(
                score, peak_M, position_M, begin, window, score_scale, softcap, N, True, SOFTCAP, WINDOW, scores_l
            )  # fmt: skip
            p = weight.to(dtype)
            low = gl.zeros([M, HALF], gl.float32, values_l)
            high = gl.zeros([M, HALF], gl.float32, values_l)
            if nearest % BLOCK > 0:
                mbarrier.wait(v_ready.index(stage), turn // STAGES & 1)
                keep_values(
                    v_s, stage, nearest // BLOCK - begin * PAGES, nearest % BLOCK, BLOCK, HALVES, PAGES, BLOCK
                )
            turn += 1
            taken += 1
            begin += 1
            if WINDOW:
                edge = gl.minimum(gl.maximum(edge, begin), end)
                turn, p, mass_M, peak_M, low, high = turns(
                    begin, edge, turn, p, mass_M, peak_M, low, high, position_M, zero, window, score_scale,
                    softcap, q_tiles, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, first_q,
                    N, HALVES, STAGES, True, SOFTCAP, WINDOW, scores_l, values_l,
                )  # fmt: skip
                begin = edge
            clear = gl.minimum(gl.maximum(clear, begin), end)
            turn, p, mass_M, peak_M, low, high = turns(
                begin, clear, turn, p, mass_M, peak_M, low, high, position_M, zero, window, score_scale,
                softcap, q_tiles, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, first_q,
                N, HALVES, STAGES, False, SOFTCAP, WINDOW, scores_l, values_l,
            )  # fmt: skip
            turn, p, mass_M, peak_M, low, high = turns(
                clear, end, turn, p, mass_M, peak_M, low, high, position_M, zero, window, score_scale,
                softcap, q_tiles, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, first_q,
                N, HALVES, STAGES, True, SOFTCAP, WINDOW, scores_l, values_l,
            )  # fmt: skip
            stage = (turn - 1) % STAGES
            mbarrier.wait(v_ready.index(stage), (turn - 1) // STAGES & 1)
            if (end * N > keys) & (keys % BLOCK > 0):
                keep_values(
                    v_s, stage, keys // BLOCK - (end - 1) * PAGES, 0, keys % BLOCK, HALVES, PAGES, BLOCK
                )
            low, high = weigh(p, v_tiles, stage * HALVES, low, high, HALVES, values_l)
            if HALVES == 2:
                low, high = warpgroup_mma_wait(0, deps=[low, high])
            else:
                low = warpgroup_mma_wait(0, deps=[low])
            barrier()
            mbarrier.arrive(v_free.index(stage), count=1)
            mbarrier.arrive(q_free.index(place), count=1)
            share_M = gl.convert_layout(
                value_scale / gl.where(mass_M == 0.0, 1.0, mass_M), gl.SliceLayout(1, values_l)
            )
            m = gl.arange(0, M, gl.SliceLayout(1, values_l))
            d = gl.arange(0, HALF, gl.SliceLayout(0, values_l))
            query_M = first + m // GROUP
            inside = gl.expand_dims(query_M < queries, 1)
            where = (start + query_M).to(gl.int64)[:, None] * out_stride + (
                (head * GROUP + m % GROUP)[:, None] * D + d[None, :]
            )
            gl.store(out_ptr + where, (low * share_M[:, None]).to(dtype), mask=inside)
            if HALVES == 2:
                gl.store(out_ptr + where + HALF, (high * share_M[:, None]).to(dtype), mask=inside)


@gluon.jit(do_not_specialize=["table_stride", "window", "units", "void"])
def prefill_kernel(
    q_rows, k_pages, v_pages, table_ptr, starts_ptr, context_ptr, work_ptr, out_ptr,
    score_scale, value_scale, softcap, window, table_stride, out_stride, units, void,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BLOCK: gl.constexpr, ROWS: gl.constexpr,
    N: gl.constexpr, STAGES: gl.constexpr, SOFTCAP: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """All units of the list of work; `void`: a block beyond the cache."""
    HALVES: gl.constexpr = D // HALF
    PAGES: gl.constexpr = N // BLOCK
    M: gl.constexpr = ROWS // 2
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    rows_l: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    barrier_l: gl.constexpr = mbarrier.MBarrierLayout()
    q_tiles = gl.allocate_shared_memory(dtype, [4 * HALVES, M, HALF], layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES * HALVES, N, HALF], layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES * HALVES, N, HALF], layout)
    q_s = reinterpret(q_tiles, dtype, [4 * HALVES, M // GROUP, GROUP, HALF], rows_l)
    k_s = reinterpret(k_tiles, dtype, [STAGES * HALVES * PAGES, BLOCK, HALF], layout)
    v_s = reinterpret(v_tiles, dtype, [STAGES * HALVES * PAGES, BLOCK, HALF], layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], barrier_l)
    q_free = gl.allocate_shared_memory(gl.int64, [2, 1], barrier_l)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier_l)
    for place in gl.static_range(2):
        mbarrier.init(q_ready.index(place), count=1)
        mbarrier.init(q_free.index(place), count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (attend, (
                starts_ptr, context_ptr, work_ptr, out_ptr, score_scale, value_scale, softcap, window, out_stride,
                units, q_tiles, k_tiles, v_tiles, v_s, q_ready, q_free, k_ready, k_free, v_ready, v_free,
                0, KV_HEADS, GROUP, M, D, BLOCK, N, STAGES, SOFTCAP, WINDOW,
            )),
            (attend, (
                starts_ptr, context_ptr, work_ptr, out_ptr, score_scale, value_scale, softcap, window, out_stride,
                units, q_tiles, k_tiles, v_tiles, v_s, q_ready, q_free, k_ready, k_free, v_ready, v_free,
                1, KV_HEADS, GROUP, M, D, BLOCK, N, STAGES, SOFTCAP, WINDOW,
            )),
            (fetch, (
                q_rows, k_pages, v_pages, table_ptr, starts_ptr, context_ptr, work_ptr, window, table_stride, units,
                void, q_s, k_s, v_s, q_ready, q_free, k_ready, k_free, v_ready, v_free,
                KV_HEADS, GROUP, M, D, BLOCK, N, STAGES, WINDOW,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def fits(q_THD: Tensor, pages: Pages) -> bool:
    """Whether this kernel takes these: head sizes 64 and 128, groups of a power of two, a cache of q's 16-bit type."""
    group = q_THD.shape[1] // pages.k.shape[2]
    return (
        configs.capability(q_THD.device) == (9, 0)
        and q_THD.shape[2] in (64, 128)
        and group in (1, 2, 4, 8, 16, 32)
        and pages.k.dtype == q_THD.dtype
        and q_THD.element_size() == 2
        and pages.k.shape[1] in (16, 32, 64)
        and q_THD.data_ptr() % 16 == 0
    )


def prefill(q_THD: Tensor, pages: Pages, scores: Scores, out_THD: Tensor, work_W2: Tensor) -> None:
    """As paged_prefill.prefill, where `fits` says so, for a list of work of ROWS."""
    (tokens, heads, head_dim), (blocks, block, kv_heads) = q_THD.shape, pages.k.shape[:3]
    group, width = heads // kv_heads, kv_heads * head_dim
    layouts = [gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=n) for n in (2, 3)]
    box = [ROWS // 2 // group, group, HALF.value]
    q_rows = TensorDescriptor(
        q_THD, [tokens, heads, head_dim], [q_THD.stride(0), head_dim, 1], box, layouts[1]
    )
    k_pages, v_pages = (
        TensorDescriptor(cache, [blocks * block, width], [width, 1], [block, HALF.value], layouts[0])
        for cache in (pages.k, pages.v)
    )
    score_scale, softcap = in_powers_of_two(pages, scores)
    units = len(work_W2) * kv_heads
    prefill_kernel[(min(units, configs.multiprocessors(q_THD.device)),)](
        q_rows, k_pages, v_pages, pages.table, pages.starts, pages.context, work_W2, out_THD,
        score_scale, pages.v_scale, softcap, scores.window or 0,
        pages.table.stride(0), out_THD.stride(0), units, blocks,
        KV_HEADS=kv_heads, GROUP=group, D=head_dim, BLOCK=block, ROWS=ROWS, N=KEYS,
        STAGES=STAGES, SOFTCAP=bool(softcap), WINDOW=scores.window is not None, num_warps=4,
    )  # fmt: skip
