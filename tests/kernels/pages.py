"""Paged caches in which every cell that no row may read is NaN."""

import numpy as np
import torch

from headrace.kernels.paged import Pages, Scores

POISON = 1  # a block no row owns; stale table entries point there


def draw(
    rows: list[tuple[int, int]], shape: tuple[int, int, int], block: int = 16, dtype: torch.dtype = torch.float16,
    device: str | torch.device = "cpu", padding: int = 0,
) -> tuple[torch.Tensor, Pages]:  # fmt: skip
    """Queries [T + padding, H, D] and pages for rows of (queries, keys); shape (H, K, D); blocks in random order."""
    heads, kv_heads, head_dim = shape
    counts = [-(-keys // block) for _, keys in rows]
    order = (torch.randperm(sum(counts)) + 2).int()
    table = torch.full((len(rows), max(counts) + 2), POISON, dtype=torch.int32)
    k, v = (torch.full((sum(counts) + 2, block, kv_heads, head_dim), float("nan")) for _ in "kv")
    for row, (own, (_, keys)) in enumerate(zip(order.split(counts), rows, strict=True)):
        table[row, : len(own)] = own
        place = torch.arange(keys)
        slot = own.long()[place // block] * block + place % block
        for cache in (k, v):
            cache.flatten(0, 1)[slot] = torch.randn(keys, kv_heads, head_dim)
    starts = torch.from_numpy(np.cumsum([0] + [queries for queries, _ in rows]).astype(np.int32))
    context = torch.tensor([keys for _, keys in rows], dtype=torch.int32)
    q = torch.randn(int(starts[-1]) + padding, heads, head_dim).to(device, dtype)
    tensors = (x.to(device) for x in (k.to(dtype), v.to(dtype), table, starts, context))
    return q, Pages(*tensors)


def hide(pages: Pages, window: int) -> None:
    """Make NaN of what no query of its row sees: keys before the first query's window."""
    block = pages.k.shape[1]
    queries = pages.starts.diff().tolist()
    for row, keys in enumerate(pages.context.tolist()):
        for key in range(keys - queries[row] - window + 1):
            where = int(pages.table[row, key // block]), key % block
            pages.k[where] = pages.v[where] = float("nan")


def scores(head_dim: int, softcap: float | None = None, window: int | None = None) -> Scores:
    """Scores with the usual scale."""
    return Scores(head_dim**-0.5, softcap, window)
