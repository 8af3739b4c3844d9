"""Weights as 8-bit floats with a scale per block of 128 x 128; inputs too, each 128 of a token (DeepSeek-V3 report)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels.rounding import cast, rounded
from headrace.kernels.scaled import GROUP as BLOCK
from headrace.kernels.scaled import spread
from headrace.quant.eight import EightBits
from headrace.quant.scheme import Axes, Packed, Spec
from headrace.quant.schemes.fp8 import E4M3, ERROR, LARGEST, scale_of


@dataclass(frozen=True)
class Fp8Block(EightBits):
    """weight float8_e4m3fn [N, K]; scale [ceil(N / 128), ceil(K / 128)]: the last blocks may be smaller."""

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(), "scale": Axes(BLOCK, BLOCK)}

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        rows, columns = weight_NK.shape
        blocks = functional.pad(weight_NK.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
        peak = blocks.abs().unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).amax((1, 3))
        scale = scale_of(peak, weight_NK.dtype)
        values = cast(weight_NK.float() / spread(scale, rows, columns), LARGEST, E4M3)
        return {"weight": values, "scale": scale}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        weight = packed["weight"]
        return (weight.float() * spread(packed["scale"], *weight.shape)).to(dtype)

    def seen(self, packed: Packed, x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
        values, scale = rounded(padded, LARGEST, E4M3)
        return (values.float() * scale).flatten(-2)[..., : x.shape[-1]].to(x.dtype)


SCHEMES = {"fp8_block": Fp8Block("fp8_block", Spec(8, "float", "block", BLOCK, activation="fp8"), ERROR)}
