"""Batches over a paged cache in which every cell that nobody may read is NaN."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

POISON = 1  # a block that no sequence ever gets; its cells stay NaN


@dataclass
class Batch:
    """The fields that back ends may read, see headrace/attention/backend.py."""

    rows: int
    tokens: int
    starts: Tensor
    context: Tensor
    tables: list[Tensor]
    slots: list[Tensor]
    positions: Tensor
    starts_np: np.ndarray
    context_np: np.ndarray
    single: bool = False


@dataclass
class Pages:
    """Block tables of growing sequences, per layer group; blocks come in random order."""

    windows: Sequence[int | None]
    size: int
    blocks: int
    seed: int = 0
    tables: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = np.random.default_rng(self.seed).permutation(self.blocks - 2) + 2
        self.free = order.tolist()

    def batch(self, rows: Sequence[tuple[int, int, int]], device: str = "cpu") -> Batch:
        """rows: (sequence, first position, position after the last) of each; may be empty."""
        tables, slots = [], []
        for group, window in enumerate(self.windows):
            lists = [self._grown(group, seq, start, stop, window) for seq, start, stop in rows]
            width = max(1, *map(len, lists)) + 1
            tables.append(torch.tensor([row + [POISON] * (width - len(row)) for row in lists]).int())
            slots.append(
                torch.tensor(
                    [
                        row[p // self.size] * self.size + p % self.size
                        for row, (_, start, stop) in zip(lists, rows, strict=True)
                        for p in range(start, stop)
                    ],
                    dtype=torch.int64,
                )
            )
        starts = np.cumsum([0] + [stop - start for _, start, stop in rows]).astype(np.int32)
        context = np.array([stop for _, _, stop in rows], np.int32)
        positions = [p for _, start, stop in rows for p in range(start, stop)]
        return Batch(
            rows=len(rows),
            tokens=int(starts[-1]),
            starts=torch.from_numpy(starts).to(device),
            context=torch.from_numpy(context).to(device),
            tables=[table.to(device) for table in tables],
            slots=[slot.to(device) for slot in slots],
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            starts_np=starts,
            context_np=context,
        )

    def _grown(self, group: int, seq: int, start: int, stop: int, window: int | None) -> list[int]:
        table = self.tables.setdefault((group, seq), [])
        while len(table) * self.size < stop:
            table.append(self.free.pop())
        if window is not None:  # blocks that no query sees any more are somebody else's by now
            for i in range(max(0, start - window + 1) // self.size):
                table[i] = POISON
        return list(table)
