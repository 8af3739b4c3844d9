"""A step as device buffers: allocated once at full size, refilled at every step.

T tokens, R rows (sequences in this step), B blocks per sequence at most. On a CPU the device's buffers are
the host's own memory; on a GPU everything a step needs travels in one copy from pinned memory.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from headrace.engine.cache import KVCache
from headrace.engine.scheduler import Row
from headrace.kernels.rotate import rotate_store
from headrace.nn.attention import Attention

Fields = dict[str, tuple[int, type[np.generic]]]


class Backend(Protocol):
    """What a file in attention/ offers (see attention/backend.py)."""

    def plan(self, batch: "Batch") -> None: ...

    def run(self, layer: Attention, q_THD: Tensor, batch: "Batch", k_cache: Tensor, v_cache: Tensor) -> Tensor: ...


class Staging:
    """Named integer arrays in one piece of memory, on the host and on the device.

    With one step in flight the copy to a GPU may still be waiting while the next step is filled in, so there
    are two host sides that take turns.
    """

    def __init__(self, fields: Fields, device: torch.device):
        self.fields = fields
        size = sum(-(-n * np.dtype(kind).itemsize // 16) * 16 for n, kind in fields.values())
        self.alias = device.type == "cpu"
        pinned = not self.alias
        self.hosts = [torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(1 if self.alias else 2)]
        self.arrays = [self._views(host.numpy()) for host in self.hosts]
        self.memory = self.hosts[0] if self.alias else torch.zeros(size, dtype=torch.uint8, device=device)
        self.device = {name: torch.from_numpy(view) for name, view in self.arrays[0].items()}
        if not self.alias:
            self.device = self._device_views(self.memory)
        self.turn = 0

    def next(self) -> dict[str, np.ndarray]:
        """The host side to fill in for the coming step."""
        self.turn = (self.turn + 1) % len(self.hosts)
        return self.arrays[self.turn]

    def upload(self) -> None:
        """Send what was filled in; returns at once."""
        if not self.alias:
            self.memory.copy_(self.hosts[self.turn], non_blocking=True)

    def _views(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        views, at = {}, 0
        for name, (n, kind) in self.fields.items():
            nbytes = n * np.dtype(kind).itemsize
            views[name] = memory[at : at + nbytes].view(kind)
            at += -(-nbytes // 16) * 16
        return views

    def _device_views(self, memory: Tensor) -> dict[str, Tensor]:
        kinds = {np.int64: torch.int64, np.int32: torch.int32}
        views, at = {}, 0
        for name, (n, kind) in self.fields.items():
            nbytes = n * np.dtype(kind).itemsize
            views[name] = memory[at : at + nbytes].view(kinds[kind])
            at += -(-nbytes // 16) * 16
        return views


class Batch:
    """The inputs of one step; also the `Step` that a model's layers see.

    ids, positions [T]; starts [R+1] offsets of the rows' queries; context [R] KV length after this step;
    tables[g] [R, B] block ids of layer group g; slots[g] [T] where each token's k and v go; sample [S] which
    tokens get logits; row_slots [R] each row's slot. Host copies end in _np.
    """

    def __init__(self, max_rows: int, max_tokens: int, max_blocks: int, cache: KVCache, backend: Backend):
        groups = len(cache.layout.groups)
        self.cache, self.backend = cache, backend
        self.block_size = cache.k[0].shape[1]
        device = cache.k[0].device
        max_rows = min(max_rows, max_tokens)
        fields: Fields = {
            "row_slots": (max_rows, np.int64),
            "sample": (max_rows, np.int64),
            "context": (max_rows, np.int32),
            "starts": (max_rows + 1, np.int32),
            "ids": (max_tokens, np.int64),
            "positions": (max_tokens, np.int64),
            **{f"slots{g}": (max_tokens, np.int64) for g in range(groups)},
        }
        self.staging = Staging(fields, device)
        self.table_np = np.zeros((groups, max_rows, max_blocks), np.int32)
        self.last = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.rows = self.tokens = 0

    def fill(self, step: list[Row]) -> None:
        """Lay out a step. Rows that `feed` take their input from `last`, where the device left it."""
        host = self.staging.next()
        n = self.rows = len(step)
        slot = host["row_slots"][:n]
        slot[:] = [row.slot for row in step]
        first = np.fromiter((row.start for row in step), np.int64, n)
        stop = np.fromiter((row.stop for row in step), np.int64, n)
        starts = host["starts"][: n + 1]
        np.cumsum(stop - first, out=starts[1:])
        starts[0] = 0
        total = self.tokens = int(starts[n])
        host["context"][:n] = stop
        if total == n:
            owner, positions = np.arange(n), first
        else:
            owner = np.repeat(np.arange(n), stop - first)
            positions = np.arange(total) - starts[owner] + first[owner]
        host["positions"][:total] = positions
        self._fill_ids(step, host["ids"], starts)
        self._fill_slots(step, host, slot[owner], positions)
        samples = np.fromiter((row.samples for row in step), bool, n)
        last = starts[1:][samples] - 1
        host["sample"][: len(last)] = last
        self._expose(host, n, total, samples)
        self.backend.plan(self)

    def attend(self, layer: Attention, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """QK-norm, RoPE, store into the cache, attention over the pages; returns [T, H * D]."""
        place = self.cache.layout.places[layer.index]
        k_cache, v_cache = self.cache.k[place.index], self.cache.v[place.index]
        q = rotate_store(
            q_THD,
            k_TKD,
            v_TKD,
            self.positions,
            layer.rope.table if layer.rope is not None else None,
            layer.q_norm.weight if layer.q_norm is not None else None,
            layer.k_norm.weight if layer.k_norm is not None else None,
            layer.q_norm.eps if layer.q_norm is not None else 0.0,
            layer.q_norm.offset if layer.q_norm is not None else 0.0,
            k_cache,
            v_cache,
            self.slots[place.group],
        )
        return self.backend.run(layer, q, self, k_cache, v_cache)

    def _fill_ids(self, step: list[Row], ids: np.ndarray, starts: np.ndarray) -> None:
        for i, row in enumerate(step):
            if row.feeds:
                ids[starts[i]] = -1 - row.slot
            else:
                ids[starts[i] : starts[i + 1]] = row.seq.tokens[row.start : row.stop]

    def _fill_slots(
        self, step: list[Row], host: dict[str, np.ndarray], owner_slot: np.ndarray, positions: np.ndarray
    ) -> None:
        for row in step:
            if row.new is not None:
                for table, ids in zip(self.table_np, row.new.ids, strict=True):
                    table[row.slot, row.new.at : row.new.at + len(ids)] = ids
        block, offset = positions // self.block_size, positions % self.block_size
        for g, table in enumerate(self.table_np):
            host[f"slots{g}"][: len(positions)] = table[owner_slot, block].astype(np.int64) * self.block_size + offset

    def _expose(self, host: dict[str, np.ndarray], n: int, total: int, samples: np.ndarray) -> None:
        """Point the public fields at the filled front of the buffers."""
        self.staging.upload()
        device = self.staging.device
        self.starts_np, self.context_np = host["starts"][: n + 1], host["context"][:n]
        self.row_slots, self.row_slots_np = device["row_slots"][:n], host["row_slots"][:n]
        self.samples_np = samples
        self.starts, self.context = device["starts"][: n + 1], device["context"][:n]
        self.positions = device["positions"][:total]
        self.slots = [device[f"slots{g}"][:total] for g in range(len(self.table_np))]
        self.sample = device["sample"][: int(samples.sum())]
        width = -(-int(self.context_np.max()) // self.block_size)
        tables = np.ascontiguousarray(self.table_np[:, self.row_slots_np, :width])
        self.tables = [torch.from_numpy(table).to(self.starts.device) for table in tables]
        ids = device["ids"][:total]
        self.ids = torch.where(ids < 0, self.last[(-1 - ids).clamp_(min=0)], ids)
