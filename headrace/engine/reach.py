"""Where the keys of a step's rows are, for a CPU: what rows share is found, and read once for all of them.

R rows with one query, S keys, K kv heads. Slots are block * block_size + offset; a cell is slot * K + kv head.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BUNCH = 1 << 19
"""Elements of keys gathered at once: they should still be in the second-level cache when they are multiplied."""
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
    """Rows with one query each. `common`: keys that all of them see; then each has its own, padded to the longest.

    queries [R] int64 their tokens; cells [K * R * S] int64, kv head by kv head; bias [K * R, 1, S], -inf where padded:
    both empty where there are no keys beside those in common.
    """

    queries: Tensor
    common: Keys
    cells: Tensor
    bias: Tensor


class Stretch(NamedTuple):
    """One row with the queries start to before stop, the last of its keys."""

    start: int
    stop: int
    keys: Keys


NONE = torch.empty(0, dtype=torch.int64, device="cpu")
NO_BIAS = torch.empty(0, device="cpu")


def bunches(
    starts: np.ndarray, context: np.ndarray, table_RB: np.ndarray, block_size: int, kv_heads: int, width: int
) -> tuple[list[Bunch], np.ndarray]:
    """(rows with one query that have a beginning in common, all other rows).

    starts [R + 1] and context [R] of all rows of the step; width: numbers per key and kv head.
    """
    sizes = np.diff(starts)
    rows, left = np.flatnonzero(sizes == 1), np.flatnonzero(sizes > 1)
    if len(rows) < 2:
        return [], np.sort(np.concatenate((rows, left)))
    found = []
    for some, shared in _families(rows, context, table_RB, block_size):
        if not shared:
            left = np.sort(np.concatenate((left, some)))
            continue
        order = some[np.argsort(-context[some], kind="stable")]
        common = Keys.of(table_RB[order[0]], shared, block_size)
        done = 0
        while done < len(order):
            keys = max(1, int(context[order[done]]) - shared)
            part = order[done : done + max(1, BUNCH // (keys * kv_heads * width))]
            done += len(part)
            cells, bias = _own(table_RB[part], context[part], shared, block_size, kv_heads)
            found.append(Bunch(torch.from_numpy(starts[part].astype(np.int64)), common, cells, bias))
    return found, left


def alone(starts: np.ndarray, context: np.ndarray, table_RB: np.ndarray, row: int, block_size: int) -> Bunch:
    """One row: its keys need no padding, hence no copy where they lie one behind the other."""
    query = torch.from_numpy(starts[row : row + 1].astype(np.int64))
    return Bunch(query, Keys.of(table_RB[row], int(context[row]), block_size), NONE, NO_BIAS)


def _families(
    rows: np.ndarray, context: np.ndarray, table_RB: np.ndarray, block_size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """(rows, how many keys they all begin with, in whole blocks and less than any of them has)."""
    first = table_RB[rows, 0]
    kinds, sizes = np.unique(first, return_counts=True)
    alone = []
    for kind in kinds[sizes > 1]:
        some = rows[first == kind]
        most = (int(context[some].min()) - 1) // block_size
        same = (table_RB[some, :most] == table_RB[some[0], :most]).all(0)
        shared = (most if same.all() else int(same.argmin())) * block_size
        if shared >= SHARED:
            yield some, shared
        else:
            alone.append(some)
    alone.append(rows[np.isin(first, kinds[sizes == 1])])
    if len(rest := np.sort(np.concatenate(alone))):
        yield rest, 0


def _own(
    table_RB: np.ndarray, context: np.ndarray, shared: int, block_size: int, kv_heads: int
) -> tuple[Tensor, Tensor]:
    """(cells, bias) of the keys of rows from `shared` on, longest row first."""
    positions = np.arange(shared, max(shared + 1, int(context[0])))
    stops = np.maximum(context, 1)[:, None]
    padded = positions >= stops
    # Padding reads the row's own newest key: what lies in cells that are not the row's enters no product.
    positions = np.where(padded, stops - 1, positions)
    slots = np.take_along_axis(table_RB, positions // block_size, 1).astype(np.int64) * block_size
    slots += positions % block_size
    cells = slots[None] * kv_heads + np.arange(kv_heads)[:, None, None]
    bias = np.where(padded, np.float32("-inf"), np.float32(0))
    return torch.from_numpy(cells.reshape(-1)), torch.from_numpy(np.tile(bias, (kv_heads, 1))).unsqueeze(1)


def stretch(
    starts: np.ndarray, context: np.ndarray, table_RB: np.ndarray, row: int, block_size: int
) -> Stretch:
    """A row with several queries."""
    keys = Keys.of(table_RB[row], int(context[row]), block_size)
    return Stretch(int(starts[row]), int(starts[row + 1]), keys)
