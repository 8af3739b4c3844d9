"""Keys and values of rows that decode on a CPU, once more: dense and side by side, so that two products serve all rows.

Blocks lie anywhere in the cache; gathering them anew at every step costs as much as attention itself. Here each row
has a lane, to which a step adds what is new. The cache stays the truth: a lane may be dropped at any time, and is
filled from there again. Rows of like lengths share a shelf, whose lanes are equally long; a row that outgrows it
moves on.

R rows, N queries of a row at most, S keys of the longest row, K kv heads, D head size.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.engine.cache import KVCache, untouched
from headrace.engine.halves import Part
from headrace.engine.reach import LEAST

LENGTHS = tuple(part << n for n in range(4) for part in (64, 96))
"""Keys that a lane of a shelf has room for. Longer rows gain nothing: each of them is work enough."""
SHARE = 4
"""One part in so many of the cache's own size may be taken by lanes."""
QUERIES = 9
"""Rows with more have no lane."""
PADDING = 2
"""Rows of a shelf are padded to as many queries as the one with most; they may become so many times as many."""
PATIENCE = 64
"""Steps after which the memory of a shelf without rows is given back."""


class Load(NamedTuple):
    """What a step does with the lanes 0 to R of one shelf.

    keys and values [layers, lanes * K, length, D]; queries [R * N] tokens of the step, empty where these are all of
    them in order; source and target: cells (slot * K + kv head) of the cache, and where they go;
    bias [R, 1, N, 1, S]: -inf where a query does not see a key.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    source: Tensor
    target: Tensor
    bias: Tensor


class Shelf:
    """Lanes of one length. `owners`: the row of each lane in use; `kept` [lanes]: how many of its keys are there."""

    def __init__(self, length: int, lanes: int, cache: KVCache, dtype: torch.dtype):
        _, _, kv_heads, size = cache.k[0].shape
        shape = (len(cache.k), lanes * kv_heads, length, size)
        self.length, self.kv_heads, self.room = length, kv_heads, lanes
        with torch.inference_mode(False):  # else it could not be written outside of inference mode later
            self.keys = untouched(shape, torch.float32, cache.k[0].device)
            self.values = untouched(shape, dtype, cache.k[0].device)
        self.owners: list[tuple[int, int]] = []
        self.kept = np.zeros(lanes, np.int64)
        self.used = np.zeros(lanes, np.int64)  # keys that ever were in a lane since it was last cleared
        self.idle = 0

    def seat(self, keys: list[tuple[int, int]]) -> list[int]:
        """A lane for each of these rows, 0 to their number; who has one of these keeps it, all others lose theirs.

        Returns which row each lane is for.
        """
        wanted = {key: n for n, key in enumerate(keys)}
        order = [-1] * len(keys)
        for lane, key in enumerate(self.owners[: len(keys)]):
            if key in wanted:
                order[lane] = wanted.pop(key)
        free = (lane for lane, row in enumerate(order) if row < 0)
        for row in wanted.values():
            lane = next(free)
            order[lane] = row
            self._clear(lane)
        self.owners = [keys[row] for row in order]
        return order

    def _clear(self, lane: int) -> None:
        """Nothing of another row may meet a product, not even times zero: it might not be a number."""
        if used := int(self.used[lane]):
            for memory in (self.keys, self.values):
                memory[:, lane * self.kv_heads : (lane + 1) * self.kv_heads, :used].zero_()
        self.kept[lane] = self.used[lane] = 0


def narrow() -> torch.dtype:
    """What is multiplied where nothing hangs on last digits: bfloat16, in half the time, if the processor has it."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


class Lanes:
    """The shelves of an engine. Rows are told apart by their slot and how often that was given away.

    Values are kept in `dtype`, which is `narrow()` unless given. `sharers`: how many of these share the memory.
    """

    def __init__(self, cache: KVCache, dtype: torch.dtype | None = None, sharers: int = 1):
        self._cache, self._dtype = cache, dtype or narrow()
        self._most = sum(c.nbytes for c in (*cache.k, *cache.v)) // (SHARE * sharers)
        self._shelves: dict[int, Shelf] = {}

    def load(self, batch: Part, rows: np.ndarray) -> tuple[list[Load], np.ndarray]:
        """(what is to be done with lanes, the rows that got none) of these rows of a step."""
        sizes = np.diff(batch.starts_np)[rows]
        lengths = np.searchsorted(LENGTHS, batch.context_np[rows])
        lengths[sizes > QUERIES] = len(LENGTHS)
        loads: list[Load] = []
        left = [rows[lengths == len(LENGTHS)]]
        for shelf in self._shelves.values():
            shelf.idle += 1
        for n, length in enumerate(LENGTHS):
            if not len(some := rows[lengths == n]):
                continue
            few = sizes[lengths == n] <= _most_queries(sizes[lengths == n])
            left.append(some[~few])
            some = some[few]
            if len(some) > 1 and (shelf := self._shelf(length, len(some))) is not None:
                loads.append(_load(shelf, batch, some))
            else:
                left.append(some)
        for length in [at for at, shelf in self._shelves.items() if shelf.idle > PATIENCE]:
            del self._shelves[length]
        return loads, np.sort(np.concatenate(left))

    def _shelf(self, length: int, rows: int) -> Shelf | None:
        """One with room for so many rows, empty if it had less; None where that takes too much memory."""
        shelf = self._shelves.get(length)
        if shelf is None or shelf.room < rows:
            room = 1 << max(2, (rows - 1).bit_length())
            _, _, kv_heads, size = self._cache.k[0].shape
            wanted = (4 + self._dtype.itemsize) * len(self._cache.k) * room * length * kv_heads * size
            others = [shelf for at, shelf in self._shelves.items() if at != length]
            if wanted + sum(s.keys.nbytes + s.values.nbytes for s in others) > self._most:
                return None
            shelf = self._shelves[length] = Shelf(length, room, self._cache, self._dtype)
        shelf.idle = 0
        return shelf


def _most_queries(sizes: np.ndarray) -> int:
    """The largest of these numbers of queries that rows with so many or fewer may be padded to."""
    for most in np.unique(sizes)[::-1].tolist():
        some = sizes[sizes <= most]
        if len(some) * most <= PADDING * some.sum():
            return most
    return 1


def _load(shelf: Shelf, batch: Part, rows: np.ndarray) -> Load:
    slots = batch.row_slots_np[rows].tolist()
    order = shelf.seat([(slot, int(batch.stays[slot])) for slot in slots])
    rows, count = rows[order], len(order)
    starts, context = batch.starts_np[rows].astype(np.int64), batch.context_np[rows].astype(np.int64)
    sizes = batch.starts_np[rows + 1] - starts
    kept = np.minimum(shelf.kept[:count], context - sizes)  # guesses that were wrong are written over
    owner = np.repeat(np.arange(count), context - kept)
    position = np.arange(len(owner)) - np.repeat((context - kept).cumsum() - context, context - kept)
    blocks = batch.table_np[0, batch.row_slots_np[rows][owner], position // batch.block_size].astype(np.int64)
    head = np.arange(shelf.kv_heads)
    source = (blocks * batch.block_size + position % batch.block_size)[:, None] * shelf.kv_heads + head
    target = (owner[:, None] * shelf.kv_heads + head) * shelf.length + position[:, None]
    # Guesses may prove wrong while their row has no lane: what is written over then is not seen here.
    shelf.kept[:count] = context - sizes + 1
    shelf.used[:count] = np.maximum(shelf.used[:count], context)
    most = int(sizes.max())
    turn = np.minimum(np.arange(most), sizes[:, None] - 1)  # padding asks what the row's last query asks
    queries = starts[:, None] + turn
    last = (context - sizes)[:, None] + turn
    hidden = np.arange(max(LEAST, int(context.max()))) > last[:, :, None]
    bias = np.where(hidden, np.float32("-inf"), np.float32(0))
    whole = queries.size == batch.tokens and bool((queries.reshape(-1) == np.arange(queries.size)).all())
    return Load(
        shelf.keys,
        shelf.values,
        torch.from_numpy(queries.reshape(-1)[: 0 if whole else None]),
        torch.from_numpy(source.reshape(-1)),
        torch.from_numpy(target.reshape(-1)),
        torch.from_numpy(bias[:, None, :, None]),
    )
