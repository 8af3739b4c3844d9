"""Drawing tokens in Triton: a row is cut into parts so that one row uses the whole GPU, and nothing is sorted.

Rows without top_k and top_p take two kernels (score every part, pick the best part), min_p one more for the largest
logit. Where nothing is cut and there is much to do, the first rules out most tokens by a bound on their noise. Rows
with top_k or top_p: the r-th largest of the maxima of small blocks is a bound that at least r tokens reach, so a few
hundred candidates that reach it are collected, and one program per row finds the exact sets among them, bit by bit.
Where they do not suffice (a flat row, a large top_k) that program falls back on the whole row: it takes the winner of
all tokens and accepts it if its rank and the mass above it allow, else looks only above it. That is rejection
sampling as in FlashInfer (Ye et al. 2025), but with noise that is fixed per token its winner is exactly the winner of
the smaller set. All of it is enqueued without asking the device anything, so it fits a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import configs, sample
from headrace.kernels.gpu.sample_numbers import (
    COMPILED,
    UNIT,
    distance,
    gumbel,
    mass,
    power,
    random_bits,
    row_keys,
)
from headrace.kernels.launch import power_of_two

FAR = tl.constexpr(32.0)
"""A token this far below the likeliest never wins: the noise spans less than 26."""
KEY_BITS = tl.constexpr(31)
LOG2_E = tl.constexpr(1.4426950408889634)
SETTINGS = ("scale_ptr", "reach_ptr", "top_k_ptr", "top_p_ptr", "seeds_ptr", "positions_ptr")
"""Parts of a table, aligned or not by the number of rows: read one by one, which is not worth compiling three times."""
COUNTS = ("parts",)
"""Numbers that the step's size decides on."""


@triton.jit
def least_key(keys, weights, target):
    """The smallest key t such that the weights of keys <= t sum to target or more; the largest if none do."""
    t, bit = 0, 0x40000000
    for _ in range(KEY_BITS):
        tried = t | bit
        bit = bit >> 1
        below = tl.sum(tl.where(keys < tried, weights, 0), 0)
        t = tl.where(below < target, tried, t)
    return t


@triton.jit
def first_of_best(score, ids):
    """(highest score, lowest id that has it)."""
    best = tl.max(score, 0)
    return best, tl.min(tl.where(score == best, ids, 0x7FFFFFFF), 0)


@triton.jit
def peaks_kernel(
    logits_ptr, stride, peaks_ptr, count_ptr, total_ptr, V, blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest logit of each block of BLOCK tokens, [S, blocks]; and the row's candidate list starts empty."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = part * BLOCKS + tl.arange(0, BLOCKS)
    ids = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(logits_ptr + row * stride + ids, mask=ids < V, other=-float("inf"))
    tl.store(peaks_ptr + row * blocks + block, tl.max(x, 1), mask=block < blocks)
    if part == 0:
        tl.store(count_ptr + row, 0)
        tl.store(total_ptr + row, tl.zeros([], tl.int64))


@triton.jit
def collect(
    z, ids, live, peak, maxima, reach, k, row, count_ptr, total_ptr, candidates_ptr,
    RANK: tl.constexpr, CAP: tl.constexpr, LIBM: tl.constexpr,
):  # fmt: skip
    """Append this part's candidates to the row's list, and its mass to the row's total."""
    keys = distance(peak, z)
    limit = tl.minimum(reach, FAR).to(tl.int32, bitcast=True)
    allowed = live & (keys <= limit)
    rank = tl.where(k > 0, tl.minimum(k, RANK), RANK)
    bound = least_key(distance(peak, maxima), tl.full(maxima.shape, 1, tl.int32), rank)
    taken = allowed & (keys <= bound)
    at = tl.atomic_add(count_ptr + row + tl.zeros(ids.shape, tl.int32), 1, mask=taken)
    tl.store(candidates_ptr + row * CAP + at, ids, mask=taken & (at < CAP))
    tl.atomic_add(total_ptr + row, tl.sum(tl.where(allowed, mass(keys, LIBM), 0), 0))


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=SETTINGS)
def score_kernel(
    logits_ptr, stride, scale_ptr, reach_ptr, top_k_ptr, top_p_ptr, seeds_ptr, positions_ptr,
    peaks_ptr, count_ptr, total_ptr, candidates_ptr, best_ptr, at_ptr, V, blocks, parts,
    GREEDY: tl.constexpr, PEAKED: tl.constexpr, CUTS: tl.constexpr, BLOCKS: tl.constexpr,
    RANK: tl.constexpr, CAP: tl.constexpr, TILE: tl.constexpr, LIBM: tl.constexpr,
):  # fmt: skip
    """One part of one row: its best token, or what it adds to the row's candidates."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = part * TILE + tl.arange(0, TILE)
    live = ids < V
    score = tl.load(logits_ptr + row * stride + ids, mask=live, other=-float("inf"))
    cut = False
    if not GREEDY:
        scale = tl.load(scale_ptr + row)
        if scale > 0:
            score = score * scale
            if PEAKED:
                n = tl.arange(0, BLOCKS)
                maxima = tl.load(peaks_ptr + row * blocks + n, mask=n < blocks, other=-float("inf")) * scale
                peak = tl.max(maxima, 0)
                reach = tl.abs(tl.load(reach_ptr + row))
                if CUTS:
                    k = tl.load(top_k_ptr + row).to(tl.int32)
                    cut = (k > 0) | (tl.load(top_p_ptr + row) < 1)
                    if cut:
                        collect(score, ids, live, peak, maxima, reach, k, row, count_ptr, total_ptr,
                                candidates_ptr, RANK, CAP, LIBM)  # fmt: skip
                near = distance(peak, score) <= reach.to(tl.int32, bitcast=True)
                score = tl.where(near, score, -float("inf"))
            if not cut:
                first, second = row_keys(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
                score += gumbel(ids, first, second, LIBM)
    best, at = first_of_best(score, ids)
    tl.store(best_ptr + row * parts + part, best)
    tl.store(at_ptr + row * parts + part, at)


@triton.jit(do_not_specialize_on_alignment=SETTINGS)
def race_kernel(
    logits_ptr, stride, scale_ptr, seeds_ptr, positions_ptr, best_ptr, at_ptr, V, span,
    TILE: tl.constexpr, LIBM: tl.constexpr,
):  # fmt: skip
    """As score_kernel for rows without any cut: `span` tokens of one row, TILE at a time, by one warp.

    With u the uniform number behind a token's noise g = -log(-log1p(-u)), -log(u / (1 - u)) < g < -log(u). So a
    token whose u is not below exp(z - best so far) cannot win: a hash, a power and a comparison rule out nearly
    all, and the exact noise is computed only for the few that are left, one after the other.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    scale = tl.load(scale_ptr + row)
    first, second = row_keys(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
    base = logits_ptr + row * stride
    start = part * span
    end = tl.minimum(start + span, V)
    ids = start + tl.arange(0, TILE)
    ahead = tl.load(base + ids, mask=ids < end, other=-float("inf"))
    best, bound, at = -float("inf"), -float("inf"), start
    for _ in range(start, end, TILE):
        x = ahead
        ahead = tl.load(base + ids + TILE, mask=ids + TILE < end, other=-float("inf"))
        if scale > 0:
            bits = random_bits(ids, first, second).to(tl.int32).to(tl.float32)
            if bound == -float("inf"):
                u = (bits + 0.5) * UNIT
                bound = tl.max(x * scale - 0.6931471805599453 * (tl.log2(u) - tl.log2(1.0 - u)), 0)
            # The margin is many times what rounding can do to either side.
            least = tl.minimum(bound - (1e-3 + tl.abs(bound) * 1e-6), 1e38)
            possible = bits < power(tl.fma(x, scale * LOG2_E, 31.0 - least * LOG2_E), LIBM)
        else:
            possible = x > best
            most = tl.max(x, 0)
            possible = possible & (x == most)
        left = tl.where(possible, ids, 0x7FFFFFFF)
        token = tl.min(left, 0)
        while token < end:
            score = tl.load(base + token)
            if scale > 0:
                score = score * scale + gumbel(token, first, second, LIBM)
            at = tl.where(score > best, token, at)
            best = tl.maximum(best, score)
            left = tl.where(left > token, left, 0x7FFFFFFF)
            token = tl.min(left, 0)
            if (scale <= 0) | (best == float("inf")):
                token = end
        bound = tl.maximum(bound, best)
        ids += TILE
    parts = tl.num_programs(1)
    tl.store(best_ptr + row * parts + part, best)
    tl.store(at_ptr + row * parts + part, at)


@triton.jit
def kth_key(row_ptr, V, peak, scale, limit, k, TILE: tl.constexpr):
    """The k-th smallest distance of a whole row, or `limit` where fewer lie within it."""
    t, bit = 0, 0x40000000
    for _ in range(KEY_BITS):
        tried = t | bit
        bit = bit >> 1
        found = tl.zeros([TILE], tl.int32)
        for start in range(0, V, TILE):
            ids = start + tl.arange(0, TILE)
            x = tl.load(row_ptr + ids, mask=ids < V, other=-float("inf"))
            found += (distance(peak, x * scale) < tried).to(tl.int32)
        t = tl.where(tl.sum(found, 0) < k, tried, t)
    return tl.minimum(t, limit)


@triton.jit
def mass_of_row(row_ptr, V, peak, scale, limit, TILE: tl.constexpr, LIBM: tl.constexpr):
    """The mass of all tokens of a row with a distance up to `limit`."""
    total = tl.zeros([TILE], tl.int64)
    for start in range(0, V, TILE):
        ids = start + tl.arange(0, TILE)
        keys = distance(peak, tl.load(row_ptr + ids, mask=ids < V, other=-float("inf")) * scale)
        total += tl.where(keys <= limit, mass(keys, LIBM), 0)
    return tl.sum(total, 0)


@triton.jit
def winner_of_row(row_ptr, V, peak, scale, limit, first, second, TILE: tl.constexpr, LIBM: tl.constexpr):
    """(best token of all within `limit`, its distance); the distance is past the limit if there is none."""
    best = tl.full([TILE], -float("inf"), tl.float32)
    at = tl.zeros([TILE], tl.int32)
    for start in range(0, V, TILE):
        ids = start + tl.arange(0, TILE)
        z = tl.load(row_ptr + ids, mask=ids < V, other=-float("inf")) * scale
        score = tl.where(distance(peak, z) <= limit, z + gumbel(ids, first, second, LIBM), -float("inf"))
        at = tl.where(score > best, ids, at)
        best = tl.maximum(best, score)
    _, token = first_of_best(best, at)
    return token, distance(peak, tl.load(row_ptr + token) * scale)


@triton.jit
def draw_from_row(
    row_ptr, V, peak, scale, limit, k, p, first, second, TILE: tl.constexpr, LIBM: tl.constexpr
):
    """One row without candidates, by rejection: every pass but the first looks only above the last winner."""
    if k > 0:
        limit = kth_key(row_ptr, V, peak, scale, limit, k, TILE)
    target = p.to(tl.float64) * mass_of_row(row_ptr, V, peak, scale, limit, TILE, LIBM).to(tl.float64)
    token, key = winner_of_row(row_ptr, V, peak, scale, limit, first, second, TILE, LIBM)
    above = mass_of_row(row_ptr, V, peak, scale, key - 1, TILE, LIBM).to(tl.float64)
    while (p < 1) & (above >= target) & (key > 0):
        limit = key - 1
        token, key = winner_of_row(row_ptr, V, peak, scale, limit, first, second, TILE, LIBM)
        above = mass_of_row(row_ptr, V, peak, scale, key - 1, TILE, LIBM).to(tl.float64)
    return token


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=SETTINGS)
def choose_kernel(
    logits_ptr, stride, scale_ptr, reach_ptr, top_k_ptr, top_p_ptr, seeds_ptr, positions_ptr,
    peaks_ptr, count_ptr, total_ptr, candidates_ptr, best_ptr, at_ptr, tokens_ptr, V, blocks, parts,
    CUTS: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr,
    RANK: tl.constexpr, CAP: tl.constexpr, TILE: tl.constexpr, LIBM: tl.constexpr,
):  # fmt: skip
    """One row: the best of its parts, or the winner among its candidates."""
    row = tl.program_id(0).to(tl.int64)
    cut = False
    if CUTS:
        scale = tl.load(scale_ptr + row)
        k, p = tl.load(top_k_ptr + row).to(tl.int32), tl.load(top_p_ptr + row)
        cut = (scale > 0) & ((k > 0) | (p < 1))
        if cut:
            n = tl.arange(0, BLOCKS)
            maxima = tl.load(peaks_ptr + row * blocks + n, mask=n < blocks, other=-float("inf")) * scale
            peak = tl.max(maxima, 0)
            limit = tl.minimum(tl.abs(tl.load(reach_ptr + row)), FAR).to(tl.int32, bitcast=True)
            first, second = row_keys(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
            count = tl.load(count_ptr + row)
            c = tl.arange(0, CAP)
            held = c < count
            ids = tl.load(candidates_ptr + row * CAP + c, mask=held, other=0)
            z = tl.load(logits_ptr + row * stride + ids, mask=held, other=-float("inf")) * scale
            keys = distance(peak, z)
            total = tl.load(total_ptr + row)
            enough = (count <= CAP) & (k <= RANK)
            near = limit
            if k > 0:
                near = tl.minimum(limit, least_key(keys, held.to(tl.int32), k))
                total = tl.sum(tl.where(held & (keys <= near), mass(keys, LIBM), 0), 0)
            if p < 1:
                weights = tl.where(held & (keys <= near), mass(keys, LIBM), 0)
                target = p.to(tl.float64) * total.to(tl.float64)
                enough = enough & (tl.sum(weights, 0).to(tl.float64) >= target)
                near = tl.minimum(near, least_key(keys, weights, target))
            if (count == 0) | enough:
                score = tl.where(held & (keys <= near), z + gumbel(ids, first, second, LIBM), -float("inf"))
                _, token = first_of_best(score, ids)
            else:
                token = draw_from_row(
                    logits_ptr + row * stride, V, peak, scale, limit, k, p, first, second, TILE, LIBM
                )
            tl.store(tokens_ptr + row, tl.minimum(token, V - 1).to(tl.int64))
    if not cut:
        n = tl.arange(0, PARTS)
        best = tl.load(best_ptr + row * parts + n, mask=n < parts, other=-float("inf"))
        at = tl.load(at_ptr + row * parts + n, mask=n < parts, other=0x7FFFFFFF)
        _, token = first_of_best(best, at)
        tl.store(tokens_ptr + row, tl.minimum(token, V - 1).to(tl.int64))


def block_for(vocab: int) -> int:
    """Tokens per block: about 300 blocks of at most 512, whatever the vocabulary."""
    return max(16, min(512, power_of_two(vocab // 256 + 1) // 2))


RACE_TILE = 512
"""Tokens that a warp of race_kernel looks at together."""

RACE_PROGRAMS = 16
"""Warps of race_kernel per multiprocessor."""

RACE_LEAST = 1 << 22
"""With fewer logits than this score_kernel, which spreads them wider, takes them."""


def race_span(rows: int, vocab: int, programs: int) -> int:
    """Tokens of a row that one program of race_kernel takes so that `programs` share the work; whole tiles."""
    parts = max(1, min(-(-programs // rows), vocab // (RACE_TILE * 4)))
    return triton.cdiv(triton.cdiv(vocab, parts), RACE_TILE) * RACE_TILE


def draw(
    logits_SV: Tensor, settings: sample.Settings | None, draws: sample.Draws, cap: int = 1024, span: int = 0
) -> Tensor:
    """sample.draw on a GPU: int64 [S]. `cap`: candidates a row may have before its whole row is searched.

    `span`: tokens of a row per program of race_kernel where no row has a cut; 0 chooses, or leaves it to
    score_kernel where there is little to do; -1 always does.
    """
    rows, vocab = logits_SV.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits_SV.device)
    if rows == 0:
        return tokens
    logits_SV = logits_SV if logits_SV.stride(1) == 1 else logits_SV.contiguous()
    device, stride = logits_SV.device, logits_SV.stride(0)
    block = block_for(vocab)
    widest = min(4096, max(16, power_of_two(vocab)))
    tile = min(1024, widest) if rows * vocab <= 1 << 19 else widest
    peaked = draws.cuts or draws.floors
    free = settings is not None and not draws.greedy and not peaked
    if free and not span and rows * vocab > RACE_LEAST and logits_SV.is_cuda:
        span = race_span(rows, vocab, RACE_PROGRAMS * configs.multiprocessors(device))
    span = max(span, 0) if free else 0
    blocks, parts = triton.cdiv(vocab, block), triton.cdiv(vocab, span or tile)
    peaks = torch.empty(rows, blocks if peaked else 1, device=device)
    best = torch.empty(rows, parts, device=device)
    at = torch.empty(rows, parts, dtype=torch.int32, device=device)
    count = torch.empty(rows, dtype=torch.int32, device=device)
    total = torch.empty(rows, dtype=torch.int64, device=device)
    candidates = torch.empty(rows, cap if draws.cuts else 1, dtype=torch.int32, device=device)
    none = sample.Settings(best, best, total, best, total, total)
    knobs = none if settings is None else settings  # a greedy kernel reads none of them
    shared = {
        "BLOCKS": power_of_two(blocks),
        "RANK": max(1, blocks * 3 // 4),
        "CAP": cap,
        "LIBM": COMPILED,
    }
    # A multiply and an add fused into one rounding would differ from the definition.
    exact = {"enable_fp_fusion": False} if COMPILED else {}
    if peaked:
        each = max(1, 2048 // block)
        peaks_kernel[(rows, triton.cdiv(blocks, each))](
            logits_SV, stride, peaks, count, total, vocab, blocks, BLOCKS=each, BLOCK=block, num_warps=4
        )
    if settings is not None and span:
        race_kernel[(rows, parts)](
            logits_SV, stride, settings.scale, settings.seeds, settings.positions, best, at, vocab, span,
            TILE=min(RACE_TILE, span), LIBM=COMPILED, num_warps=1, **exact,
        )  # fmt: skip
    else:
        score_kernel[(rows, parts)](
            logits_SV, stride, *knobs, peaks, count, total, candidates, best, at, vocab, blocks, parts,
            GREEDY=draws.greedy, PEAKED=peaked, CUTS=draws.cuts, TILE=tile,
            num_warps=4 if tile <= 1024 else 8, **shared, **exact,
        )  # fmt: skip
    most = max(parts, triton.cdiv(vocab, 1024))  # the same for nearly all sizes, and so is the kernel
    choose_kernel[(rows,)](
        logits_SV, stride, *knobs, peaks, count, total, candidates, best, at, tokens, vocab, blocks, parts,
        CUTS=draws.cuts, PARTS=power_of_two(most), TILE=widest,
        num_warps=8 if draws.cuts else 4, **shared, **exact,
    )  # fmt: skip
    return tokens
