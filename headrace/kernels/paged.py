"""Attention over a paged cache: what it reads, how scores are formed, the definition of both kernels, their work.

T tokens in the step, R rows (sequences), H query heads, K kv heads, D head size, S keys of a row. Query i of a
row stands at position p = context - (queries of the row) + i; it sees keys j <= p, with a window only p - j < window.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Pages(NamedTuple):
    """A layer's keys and values, and where each row's are.

    k, v              [blocks, block_size, K, D], bf16, fp16 or fp8 e4m3
    table             [R, max blocks] int32; entries outside of what a row sees may be stale but not out of range
    starts            [R + 1] int32: row r owns the queries starts[r] .. starts[r + 1], none where it is empty
    context           [R] int32: keys of row r, its queries' own included
    k_scale, v_scale  what stored values are multiplied by; 1 unless the cache is fp8
    """

    k: Tensor
    v: Tensor
    table: Tensor
    starts: Tensor
    context: Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0


class Scores(NamedTuple):
    """How scores are formed from q . k: times scale, then softcap * tanh(score / softcap), within a window."""

    scale: float
    softcap: float | None = None
    window: int | None = None


def movable(cache: Tensor) -> Tensor:
    """The cache as torch can gather and scatter it: of 8-bit floats the bytes."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


def cells_of(cache: Tensor, slots_S: Tensor) -> Tensor:
    """Cells [S, K, D] of a cache [blocks, block_size, K, D] by slot = block * block_size + offset, in its dtype."""
    return movable(cache).flatten(0, 1).index_select(0, slots_S).view(cache.dtype)


def paged_attention(
    q_THD: Tensor, pages: Pages, scores: Scores, least: int = 1, most: int | None = None
) -> Tensor:
    """Attention [T, H, D] in q's dtype, computed in float32, of the rows that have `least` to `most` queries.

    Zero for all other tokens, and for queries that see no key.
    """
    out = torch.zeros_like(q_THD, memory_format=torch.contiguous_format)
    starts, context = pages.starts.tolist(), pages.context.tolist()
    size = pages.k.shape[1]
    for row, keys in enumerate(context):
        start, stop = starts[row], starts[row + 1]
        if not least <= stop - start <= (stop if most is None else most) or keys == 0:
            continue
        # What no query sees is not read: its blocks may serve others by now.
        first = 0 if scores.window is None else max(0, keys - (stop - start) - scores.window + 1)
        position = torch.arange(first, keys, device=q_THD.device)
        slot = pages.table[row].long()[position // size] * size + position % size
        k_SKD = cells_of(pages.k, slot).float() * pages.k_scale
        v_SKD = cells_of(pages.v, slot).float() * pages.v_scale
        out[start:stop] = attend(q_THD[start:stop], k_SKD, v_SKD, scores).to(out.dtype)
    return out


def attend(q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, scores: Scores) -> Tensor:
    """Causal attention of one row's queries, the last of its S positions: float32 [T, H, D]."""
    tokens, keys = len(q_THD), len(k_SKD)
    group = q_THD.shape[1] // k_SKD.shape[1]
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k_SKD, v_SKD))
    score_HTS = torch.einsum("thd,shd->hts", q_THD.float(), k) * scores.scale
    if scores.softcap is not None:
        score_HTS = scores.softcap * torch.tanh(score_HTS / scores.softcap)
    place = torch.arange(keys, device=k.device)
    distance = (keys - tokens + torch.arange(tokens, device=k.device))[:, None] - place
    hidden = (distance < 0) if scores.window is None else (distance < 0) | (distance >= scores.window)
    weight = torch.softmax(score_HTS.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("hts,shd->thd", weight, v)


def prefill_work(starts_np: np.ndarray, context_np: np.ndarray, span: int, least: int = 2) -> np.ndarray:
    """Pieces of `span` queries of the rows with at least `least`: int32 [W, 2] (row, first query), longest first."""
    queries = np.diff(starts_np)
    rows = np.flatnonzero(queries >= least)
    pieces = -(-queries[rows] // span)
    row = np.repeat(rows, pieces)
    first = (np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * span
    keys = context_np[row] - queries[row] + np.minimum(first + span, queries[row])
    order = np.argsort(-keys, kind="stable")
    return np.stack([row[order], first[order]], axis=1).astype(np.int32)
