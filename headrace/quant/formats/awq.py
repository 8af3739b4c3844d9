"""Checkpoints of AutoAWQ."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.quant.formats.layer import FLOATS, Layer, Stored, grid_of, shape2, tensor, whole
from headrace.quant.scheme import Scheme

METHODS = ("awq",)
BITS, LANES = 4, 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Column j of eight lies in nibble PLACES[j] of its word."""


@dataclass(frozen=True)
class Awq:
    """Values in rows of words: qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales [G, N]."""

    group: int

    marks = frozenset({"qweight"})

    def open(self, layer: Layer) -> Stored:
        columns, words = shape2(layer, "qweight")
        rows = words * LANES
        grid = grid_of(layer, BITS, self.group, columns)

        def convert() -> tuple[Scheme, dict[str, Tensor]]:
            values_KN = nibbles(tensor(layer, "qweight", (torch.int32,)))
            scale = tensor(layer, "scales", FLOATS, (grid.groups, rows))
            zeros_GN = nibbles(tensor(layer, "qzeros", (torch.int32,), (grid.groups, words)))
            return grid.assemble(values_KN.T, scale.T, zeros_GN.T)

        return Stored((rows, columns), layer.suffixes & {"qweight", "qzeros", "scales"}, convert)


def nibbles(words: Tensor) -> Tensor:
    """int32 [..., C] to signed values, int8 [..., 8 C]."""
    shifts = torch.tensor(PLACES, dtype=torch.int32) * BITS
    return (((words.unsqueeze(-1) >> shifts) & 15) - 8).to(torch.int8).flatten(-2)


def read(config: dict[str, Any], where: str) -> Awq:
    bits = config.get("bits", config.get("w_bit", BITS))
    version = str(config.get("version", "gemm")).lower()
    if bits != BITS or version != "gemm":
        raise Refused(f"{where}: AWQ with {bits!r} bits, version {version!r} is not supported; 4, 'gemm' is")
    return Awq(whole(config.get("group_size", config.get("q_group_size", 128)), "group_size", where))
