"""Attention over a paged cache in plain torch, the same bits for a query in any chunk and any company.

Queries and keys are cut at absolute positions: a query is always in the same place of a tile of the same shape, and
meets its keys in the same tiles, in order (online softmax: Milakov & Gimelshein 2018). What a step does not have
of a tile is zero there. So every product and every function is called with tensors of one shape, and what torch
makes of their sizes is always the same. kernels/gpu/paged_fixed.py is the counterpart for GPUs.
"""

import torch
from torch import Tensor

from headrace.kernels.paged import Pages, Scores, cells_of

QUERIES, KEYS = 8, 128


def paged_fixed(q_THD: Tensor, pages: Pages, scores: Scores) -> Tensor:
    """Attention [T, H, D] in q's dtype of all rows, computed in float32; zero for what belongs to none."""
    out = torch.zeros(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    starts, context = pages.starts.tolist(), pages.context.tolist()
    for row, keys in enumerate(context):
        start, stop = starts[row], starts[row + 1]
        first = keys - (stop - start)  # position of the first query
        if stop == start or keys == 0:
            continue
        k_SKD, v_SKD = _gathered(pages, row, first, keys, scores.window)
        for tile in range(first // QUERIES * QUERIES, keys, QUERIES):
            a, b = max(tile, first), min(tile + QUERIES, keys)
            q_QHD = q_THD.new_zeros(QUERIES, *q_THD.shape[1:], dtype=torch.float32)
            q_QHD[a - tile : b - tile] = q_THD[start + a - first : start + b - first]
            made = _tile(q_QHD, k_SKD, v_SKD, tile, b, scores)
            out[start + a - first : start + b - first] = made[a - tile : b - tile].to(out.dtype)
    return out


def _gathered(pages: Pages, row: int, first: int, keys: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Keys and values of a row in float32, at their positions; zero where no query sees them, and up to whole tiles."""
    nearest = 0 if window is None else max(0, first - window + 1)
    position = torch.arange(nearest, keys, device=pages.k.device)
    size = pages.k.shape[1]
    slots = pages.table[row].long()[position // size] * size + position % size
    made = []
    for cache, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale)):
        tiled = torch.zeros(-(-keys // KEYS) * KEYS, *cache.shape[2:], device=cache.device)
        tiled[nearest:keys] = cells_of(cache, slots)
        made.append(tiled if scale == 1.0 else tiled.mul_(scale))
    return made[0], made[1]


def _tile(q_QHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, first: int, stop: int, scores: Scores) -> Tensor:
    """Queries at positions first .. first + QUERIES against the keys before `stop`: [Q, H, D] in float32."""
    heads, size = q_QHD.shape[1:]
    kv_heads = k_SKD.shape[1]
    q = (
        (q_QHD * scores.scale)
        .view(QUERIES, kv_heads, -1, size)
        .permute(1, 2, 0, 3)
        .reshape(kv_heads, -1, size)
    )
    peak = q.new_full((kv_heads, q.shape[1], 1), -torch.inf)
    mass, acc = torch.zeros_like(peak), torch.zeros_like(q)
    begin = 0 if scores.window is None else max(0, first - scores.window + 1) // KEYS * KEYS
    for at in range(begin, stop, KEYS):
        k, v = (x[at : at + KEYS].transpose(0, 1).contiguous() for x in (k_SKD, v_SKD))
        score = torch.bmm(q, k.transpose(1, 2))
        if scores.softcap is not None:
            score = score.div_(scores.softcap).tanh_().mul_(scores.softcap)
        score = score.view(kv_heads, -1, QUERIES, KEYS).masked_fill_(
            _hidden(first, at, scores.window, q.device), -torch.inf
        )
        score = score.view(kv_heads, -1, KEYS)
        new = torch.maximum(peak, score.amax(-1, keepdim=True))
        floor = new.masked_fill(new == -torch.inf, 0.0)
        weight, fade = score.sub_(floor).exp_(), peak.sub_(floor).exp_()
        mass = mass.mul_(fade).add_(weight.sum(-1, keepdim=True))
        acc = acc.mul_(fade).add_(torch.bmm(weight, v))
        peak = new
    acc = acc.div_(mass.masked_fill_(mass == 0, 1.0))
    return (
        acc.view(kv_heads, heads // kv_heads, QUERIES, size).permute(2, 0, 1, 3).reshape(QUERIES, heads, size)
    )


def _hidden(first: int, at: int, window: int | None, device: torch.device) -> Tensor:
    """[Q, S]: which of the keys from `at` on a query from `first` on does not see."""
    distance = torch.arange(first, first + QUERIES, device=device)[:, None] - torch.arange(
        at, at + KEYS, device=device
    )
    return distance < 0 if window is None else (distance < 0) | (distance >= window)
