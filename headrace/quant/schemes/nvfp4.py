"""Weights as 4-bit floats (e2m1) in groups of 16 with an 8-bit float scale and a factor for all, inputs as they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.rounding import cast
from headrace.quant.fp4 import LARGEST, pack_fp4, unpack_fp4
from headrace.quant.scheme import Axes, Packed, Scheme, Spec
from headrace.quant.schemes.fp8 import E4M3
from headrace.quant.schemes.fp8 import LARGEST as LARGEST_SCALE

GROUP = 16


@dataclass(frozen=True)
class Nvfp4(Scheme):
    """weight uint8 [N, K / 2], even columns in low nibbles; scale float8_e4m3fn [N, K / 16].

    divisor float32 [1]: scales are divided by it; the largest one is stored as 448.
    """

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(1, 2), "scale": Axes(1, GROUP), "divisor": Axes(0, 0)}

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        groups = weight_NK.float().unflatten(1, (-1, GROUP))
        peak = groups.abs().amax(2)
        divisor = (LARGEST_SCALE * LARGEST / peak.amax().clamp_min(1e-30)).reshape(1)
        scale = cast(peak / LARGEST * divisor, LARGEST_SCALE, E4M3)
        real = (scale.float() / divisor).unsqueeze(2)
        values = torch.where(real > 0, groups / real, torch.zeros_like(groups))
        return {"weight": pack_fp4(values.flatten(1)), "scale": scale, "divisor": divisor}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        scale = packed["scale"].float() / packed["divisor"]
        values = unpack_fp4(packed["weight"]).unflatten(1, (-1, GROUP))
        return (values * scale.unsqueeze(2)).flatten(1).to(dtype)


# As mxfp4.py, by a scale that is off by up to 1/16. Groups far smaller than the weight's largest lose more: to bound
# that takes the whole weight.
SCHEMES = {"nvfp4": Nvfp4("nvfp4", Spec(4, "float", "group", GROUP), 1 / 5 + 1 / 16)}
