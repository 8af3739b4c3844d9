"""Checkpoints of AutoGPTQ and GPTQModel."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused
from headrace.quant.bits import WORD, unpack_bits
from headrace.quant.formats.layer import (
    FLOATS,
    Layer,
    Stored,
    grid_of,
    group_order,
    refused,
    shape2,
    signed,
    tensor,
    whole,
)
from headrace.quant.scheme import Scheme

METHODS = ("gptq",)
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Gptq:
    """Values in columns of words: qweight int32 [K * bits / 32, N], qzeros int32 [G, N * bits / 32], scales [G, N].

    Version 1 stores zero points minus one. `overrides`: (regular expression, settings) of layers that differ.
    """

    settings: dict[str, Any]
    shift: int
    overrides: tuple[tuple[re.Pattern[str], dict[str, Any]], ...]
    where: str

    marks = frozenset({"qweight"})

    def open(self, layer: Layer) -> Stored:
        bits, group = self._settings(layer.name)
        words, rows = shape2(layer, "qweight")
        columns = words * WORD // bits
        grid = grid_of(layer, bits, group, columns)
        taken = layer.suffixes & {"qweight", "qzeros", "scales", "g_idx"}
        if self.settings.get("desc_act") and grid.group and "g_idx" not in taken:
            raise BadCheckpoint(f"{layer.name} lacks g_idx, which desc_act needs")

        def convert() -> tuple[Scheme, dict[str, Tensor]]:
            words_KN = tensor(layer, "qweight", (torch.int32,))
            zeros = tensor(layer, "qzeros", (torch.int32,), (grid.groups, -(-rows * bits // WORD)))
            scale = tensor(layer, "scales", FLOATS, (grid.groups, rows))
            zero_NG = _zero(zeros, bits, rows, self.shift)
            order = group_order(layer, "g_idx", grid)
            values_NK = signed(words_KN.T.contiguous(), bits, columns)
            return grid.assemble(values_NK, scale.T, zero_NG, order)

        return Stored((rows, columns), taken, convert)

    def _settings(self, name: str) -> tuple[int, int]:
        settings = self.settings
        for pattern, changes in self.overrides:
            if pattern.match(name):
                settings = {**settings, **changes}
                break
        bits = whole(settings.get("bits"), "bits", self.where)
        if bits not in BITS:
            raise refused(name, f"GPTQ with {bits} bits")
        return bits, whole(settings.get("group_size", -1), "group_size", self.where)


def _zero(words: Tensor, bits: int, rows: int, shift: int) -> Tensor:
    """Zero points for signed values: int8 [N, G]."""
    if WORD % bits == 0:
        # Version 1 takes one from all values of a word at once: a zero point of 0 borrows from the one above it.
        words, shift = words + shift * sum(1 << place for place in range(0, WORD, bits)), 0
    stored = unpack_bits(words, bits, rows).to(torch.int16)
    return (((stored + shift) & (1 << bits) - 1) - (1 << bits - 1)).to(torch.int8).T


def read(config: dict[str, Any], where: str) -> Gptq:
    kind = config.get("checkpoint_format") or config.get("format") or "gptq"
    if kind not in ("gptq", "gptq_v2"):
        raise Refused(f"{where}: GPTQ in the format {kind!r} is not supported; gptq or gptq_v2 was expected")
    dynamic = config.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise BadCheckpoint(f"{where}: dynamic is {dynamic!r}; an object was expected")
    overrides = []
    for pattern, changes in dynamic.items():
        if pattern.startswith("-:"):
            continue  # not quantized, as its tensors show
        try:
            overrides.append((re.compile(pattern.removeprefix("+:")), dict(changes)))
        except (re.error, TypeError, ValueError) as fault:
            raise BadCheckpoint(f"{where}: dynamic has {pattern!r}: {fault}") from fault
    return Gptq(config, 1 if kind == "gptq" else 0, tuple(overrides), where)
