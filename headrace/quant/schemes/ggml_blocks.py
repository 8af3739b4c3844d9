"""Weights in GGML's block formats, as they lie in .gguf files; inputs as they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.quant.ggml import KINDS, dequantize
from headrace.quant.ggml_pack import quantize
from headrace.quant.scheme import Axes, Packed, Scheme, Spec


@dataclass(frozen=True)
class Blocks(Scheme):
    """weight uint8 [N, K / elements of a block, bytes of a block]; scales and all are inside."""

    @property
    def kind(self) -> str:
        """The format's own name, as in quant/ggml.py."""
        return self.name.upper()

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(1, KINDS[self.kind].elements)}

    def fits(self, rows: int, columns: int) -> str | None:
        elements = KINDS[self.kind].elements
        return f"blocks of {elements} do not divide {columns} columns" if columns % elements else None

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        return {"weight": quantize(weight_NK, self.kind)}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize(packed["weight"], self.kind, self.size(packed), dtype)


def _scheme(kind: str, bits: int, symmetric: bool, error: float) -> Blocks:
    return Blocks(kind.lower(), Spec(bits, "int", "group", KINDS[kind].elements, symmetric), error)


# Errors of a block's largest number: half a step of the finest that its span may need (twice that number where the
# least is stored), a clipped step at the far end, scales in fp16; for blocks of 256 also scales in 6 or 8 bits.
SCHEMES = {
    made.name: made
    for made in (
        _scheme("Q4_0", 4, True, 1 / 8 + 1e-3),
        _scheme("Q4_1", 4, False, 1 / 15 + 2e-3),
        _scheme("Q5_0", 5, True, 1 / 16 + 1e-3),
        _scheme("Q5_1", 5, False, 1 / 31 + 2e-3),
        _scheme("Q8_0", 8, True, 0.5 / 127 + 1e-3),
        _scheme("Q4_K", 4, False, 0.1),
        _scheme("Q5_K", 5, False, 0.06),
        _scheme("Q6_K", 6, True, 0.04),
    )
}
