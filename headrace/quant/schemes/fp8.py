"""Weights as 8-bit floats (e4m3) with a scale per row or for all; inputs too, or as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.rounding import cast
from headrace.quant.eight import EightBits
from headrace.quant.grid import E4M3, Grid, positive
from headrace.quant.scheme import Packed, Spec

LARGEST = 448.0


def scale_of(peak: Tensor, dtype: torch.dtype) -> Tensor:
    """By what a largest number is divided to be the largest 8-bit float; one where all is zero."""
    return positive((peak.float() / LARGEST).to(dtype))


@dataclass(frozen=True)
class Fp8(EightBits):
    """A checkpoint's one scale for a whole weight becomes one per row, which are equal: so weights can be joined."""

    largest, dtype = LARGEST, E4M3

    @property
    def grid(self) -> Grid:
        """See Scheme. One scale for all rows is stored as one per row, and may as well differ."""
        return Grid(-LARGEST, LARGEST, LARGEST, floats=True)

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        """See Scheme. A static scheme's input_scale comes from calibration; the caller adds it."""
        peak = weight_NK.abs().amax(1, keepdim=True)
        if self.spec.granularity == "tensor":
            peak = peak.amax().expand_as(peak)
        scale = scale_of(peak, weight_NK.dtype)
        return {"weight": cast(weight_NK.float() / scale.float(), LARGEST, E4M3), "scale": scale.contiguous()}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        return (packed["weight"].float() * packed["scale"].float()).to(dtype)


# 4 bits of mantissa counting the hidden one: half a step is 1/16 of a number. A scale in bf16 adds 1/256, and
# clips what it is too small for by as much.
ERROR = 1 / 16 + 1 / 256
SCHEMES = {
    "fp8": Fp8("fp8", Spec(8, "float", "channel", activation="fp8"), ERROR),
    "fp8_static": Fp8("fp8_static", Spec(8, "float", "tensor", activation="fp8", static=True), ERROR),
    "fp8_a16": Fp8("fp8_a16", Spec(8, "float", "channel"), ERROR),
}
