"""Named integer arrays in one piece of memory, on the host and on the device, so that a step travels in one copy."""

import numpy as np
import torch
from torch import Tensor

Fields = dict[str, tuple[int, type[np.generic]]]
"""Name -> (how many, numpy type: int64 or int32), in the order in which they lie in memory."""

_KINDS = {np.int64: torch.int64, np.int32: torch.int32}
_ALIGN = 16


class Staging:
    """`next` gives the host's arrays to fill in; `upload` sends them; `device` has them as tensors.

    On a CPU both are the same memory. With one step in flight the copy to a GPU may still be waiting while the
    next step is filled in, so there are two host sides that take turns.
    """

    def __init__(self, fields: Fields, device: torch.device):
        self.alias = device.type == "cpu"
        self._spans: dict[str, tuple[int, int]] = {}
        at = 0
        for name, (count, kind) in fields.items():
            nbytes = count * np.dtype(kind).itemsize
            self._spans[name] = at, at + nbytes
            at += -(-nbytes // _ALIGN) * _ALIGN
        sides = 1 if self.alias else 2
        self._hosts = [torch.zeros(at, dtype=torch.uint8, pin_memory=not self.alias) for _ in range(sides)]
        self._arrays = [
            {name: host.numpy()[a:b].view(fields[name][1]) for name, (a, b) in self._spans.items()}
            for host in self._hosts
        ]
        self._memory = self._hosts[0] if self.alias else torch.zeros(at, dtype=torch.uint8, device=device)
        self.device: dict[str, Tensor] = {
            name: self._memory[a:b].view(_KINDS[fields[name][1]]) for name, (a, b) in self._spans.items()
        }
        self._turn = 0

    def next(self) -> dict[str, np.ndarray]:
        """The host side to fill in for the coming step."""
        self._turn = (self._turn + 1) % len(self._hosts)
        return self._arrays[self._turn]

    def upload(self, last: str | None = None) -> None:
        """Send all fields up to and including `last`, or all; returns at once."""
        if not self.alias:
            end = self._memory.shape[0] if last is None else self._spans[last][1]
            self._memory[:end].copy_(self._hosts[self._turn][:end], non_blocking=True)
