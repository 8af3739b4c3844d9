"""What paged_prefill_hopper.py works on, unit by unit, and the warp that fetches it, in Gluon; names are as there."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

HALF: gl.constexpr = gl.constexpr(64)


@gluon.jit
def unit_of(
    work_ptr, starts_ptr, context_ptr, lap, units, window,
    KV_HEADS: gl.constexpr, SPAN: gl.constexpr, N: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """(row, head, first query, start, queries, keys, nearest key, tiles: begin, edge, clear, end) of this lap's unit.

    Programs take units to and fro, since the list is sorted by length. Tiles before `edge` and from `clear` on hide
    some key from some query. A unit beyond the list and an item of row -1 have no tiles.
    """
    programs = gl.num_programs(0)
    place = gl.where(lap % 2 == 0, gl.program_id(0), programs - 1 - gl.program_id(0))
    unit = lap * programs + place
    item, head = unit // KV_HEADS, unit % KV_HEADS
    row = gl.load(work_ptr + 2 * item, mask=unit < units, other=-1)
    first = gl.load(work_ptr + 2 * item + 1, mask=unit < units, other=0)
    live = row >= 0
    row = gl.maximum(row, 0)
    start = gl.load(starts_ptr + row)
    queries = gl.load(starts_ptr + row + 1) - start
    keys = gl.load(context_ptr + row)
    offset = keys - queries
    final = offset + gl.minimum(first + SPAN, queries) - 1  # the last query's position
    end = gl.where(live, final // N + 1, 0)
    nearest = 0 * keys
    edge = 0 * keys
    if WINDOW:
        nearest = gl.maximum(offset + first - window + 1, 0)
        edge = (gl.maximum(final - window + 1, 0) + N - 1) // N
    begin = gl.minimum(nearest // N, end)
    return row, head, first, start, queries, keys, nearest, begin, edge, (offset + first + 1) // N, end


@gluon.jit
def fetch_tile(
    pages, pages_s, stage, ready, line_ptr, tile, nearest, keys, head, void,
    N: gl.constexpr, BLOCK: gl.constexpr, HALVES: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Start copying a tile's pages, half a row at a time; pages that no query sees become zero."""
    mbarrier.expect(ready, N * D * 2)
    for page in gl.static_range(N // BLOCK):
        key = tile * N + page * BLOCK
        block = gl.load(line_ptr + key // BLOCK, mask=(key < keys) & (key + BLOCK > nearest), other=void)
        for half in gl.static_range(HALVES):
            place = pages_s.index((stage * HALVES + half) * (N // BLOCK) + page)
            tma.async_copy_global_to_shared(pages, [block * BLOCK, head * D + half * HALF], ready, place)


@gluon.jit
def fetch(
    q_rows, k_pages, v_pages, table_ptr, starts_ptr, context_ptr, work_ptr, window, table_stride, units, void,
    q_s, k_s, v_s, q_ready, q_free, k_ready, k_free, v_ready, v_free,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, M: gl.constexpr, D: gl.constexpr, BLOCK: gl.constexpr,
    N: gl.constexpr, STAGES: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """The part of the warp that fetches: all tiles of all units of this program, as places become free."""
    HALVES: gl.constexpr = D // HALF
    SPAN: gl.constexpr = M // GROUP
    turn = 0
    taken = 0
    for lap in range(gl.cdiv(units, gl.num_programs(0))):
        row, head, first, start, _queries, keys, nearest, begin, _edge, _clear, end = unit_of(
            work_ptr, starts_ptr, context_ptr, lap, units, window, KV_HEADS, 2 * SPAN, N, WINDOW
        )
        line_ptr = table_ptr + row.to(gl.int64) * table_stride
        if begin < end:
            place = taken % 2
            mbarrier.wait(q_free.index(place), taken // 2 & 1 ^ 1)
            mbarrier.expect(q_ready.index(place), 2 * M * D * 2)
            for part in gl.static_range(2 * HALVES):
                token = start + first + part // HALVES * SPAN
                tma.async_copy_global_to_shared(
                    q_rows, [token, head * GROUP, part % HALVES * HALF], q_ready.index(place),
                    q_s.index(place * 2 * HALVES + part),
                )  # fmt: skip
            taken += 1
        for tile in range(begin, end):
            stage, lap = turn % STAGES, turn // STAGES & 1
            mbarrier.wait(k_free.index(stage), lap ^ 1)
            fetch_tile(
                k_pages, k_s, stage, k_ready.index(stage), line_ptr, tile, nearest, keys, head,
                void, N, BLOCK, HALVES, D,
            )  # fmt: skip
            mbarrier.wait(v_free.index(stage), lap ^ 1)
            fetch_tile(
                v_pages, v_s, stage, v_ready.index(stage), line_ptr, tile, nearest, keys, head,
                void, N, BLOCK, HALVES, D,
            )  # fmt: skip
            turn += 1
