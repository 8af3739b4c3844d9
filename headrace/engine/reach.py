"""Where the keys of a step's rows are, for a CPU: what rows share is found, and read once for all of them.

R rows, S keys, K kv heads. Slots are block * block_size + offset; a cell is slot * K + kv head.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BUNCH = 1 << 19
"""Elements of keys gathered at once: they should still be in the second-level cache when they are multiplied."""
QUERIES = 128
"""Queries whose scores with keys in common are made at once, at most; rows with more are each computed alone."""
LEAST = 16
"""Keys that are multiplied at once at least where bits must not change: fewer are added up in another order."""
SHARED = 48
"""Keys that rows must have in common for these to be a product of their own."""


class Keys(NamedTuple):
    """Slots from `first` to before `last` where they lie one behind the other; else as a list."""

    slots: Tensor
    first: int
    last: int

    @classmethod
    def of(cls, table_B: np.ndarray, count: int, block_size: int) -> "Keys":
        """The first `count` keys of a row with these blocks."""
        blocks = table_B[: -(-count // block_size)].astype(np.int64)
        if len(blocks) and (np.diff(blocks) == 1).all():
            first = int(blocks[0]) * block_size
            return cls(NONE, first, first + count)
        slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[:count]
        return cls(torch.from_numpy(slots), 0, 0)


class Bunch(NamedTuple):
    """Rows with up to N queries each. `common`: keys that all see; then each has its own, padded to the longest.

    queries [R * N] int64 their tokens, a row's last one again where it has fewer; cells [K * R * S] int64, kv head
    by kv head; bias [R, N, 1, S], -inf where hidden: both empty where there are no keys beside those in common.
    """

    queries: Tensor
    common: Keys
    cells: Tensor
    bias: Tensor


NONE = torch.empty(0, dtype=torch.int64, device="cpu")
NO_BIAS = torch.empty(0, device="cpu")


def bunches(
    starts: np.ndarray,
    context: np.ndarray,
    table_RB: np.ndarray,
    block_size: int,
    kv_heads: int,
    width: int,
    whole: int = 1,
) -> tuple[list[Bunch], np.ndarray]:
    """(rows with few queries that have a beginning in common, all other rows).

    starts [R + 1] and context [R] of all rows of the step; width: numbers per key and kv head;
    what is in common is a whole number of `whole` keys.
    """
    sizes, found, left = np.diff(starts), [], np.full(len(context), True)
    if len(context) < 2:
        return [], np.flatnonzero(left)
    for some, shared in _families(sizes, context, table_RB, block_size, whole):
        left[some] = False
        order = some[np.argsort(-context[some], kind="stable")]
        common = Keys.of(table_RB[order[0]], shared, block_size)
        most, done = int(sizes[some].max()), 0
        while done < len(order):
            keys = max(1, int(context[order[done]]) - shared)
            count = max(1, min(BUNCH // (keys * kv_heads * width), QUERIES // most))
            part = order[done : done + count]
            done += len(part)
            turn = np.minimum(np.arange(most), sizes[part, None] - 1)
            queries = starts[part, None].astype(np.int64) + turn
            last = context[part, None] - sizes[part, None] + turn
            least = LEAST if whole > 1 else 1
            cells, bias = _own(table_RB[part], last, shared, least, block_size, kv_heads)
            found.append(Bunch(torch.from_numpy(queries.reshape(-1)), common, cells, bias))
    return found, np.flatnonzero(left)


def _families(
    sizes: np.ndarray, context: np.ndarray, table_RB: np.ndarray, block_size: int, whole: int
) -> Iterator[tuple[np.ndarray, int]]:
    """(rows with like numbers of queries, how many keys all of these see in common, in whole blocks and `whole`s)."""
    kinds = table_RB[:, 0].astype(np.int64) * QUERIES + np.ceil(np.log2(sizes)).astype(np.int64)
    kinds[sizes > QUERIES] = -1
    for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
        if kind < 0 or count < 2:
            continue
        some = np.flatnonzero(kinds == kind)
        most = int((context[some] - sizes[some]).min()) // block_size
        same = (table_RB[some, :most] == table_RB[some[0], :most]).all(0)
        shared = (most if same.all() else int(same.argmin())) * block_size // whole * whole
        if shared >= SHARED:
            yield some, shared


def _own(
    table_RB: np.ndarray, last_RN: np.ndarray, shared: int, least: int, block_size: int, kv_heads: int
) -> tuple[Tensor, Tensor]:
    """(cells, bias) of the keys of rows from `shared` on; `last_RN`: of each query the last that it sees."""
    positions = np.arange(shared, max(int(last_RN.max()) + 1, shared + least))
    hidden = positions > last_RN[:, :, None]
    # Padding reads the row's own newest key: what lies in cells that are not the row's enters no product.
    positions = np.minimum(positions, last_RN[:, -1:])
    slots = np.take_along_axis(table_RB, positions // block_size, 1).astype(np.int64) * block_size
    slots += positions % block_size
    cells = slots[None] * kv_heads + np.arange(kv_heads)[:, None, None]
    bias = np.where(hidden, np.float32("-inf"), np.float32(0))
    return torch.from_numpy(cells.reshape(-1)), torch.from_numpy(bias).unsqueeze(2)
