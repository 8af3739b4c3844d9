"""Weights as 4-bit floats (e2m1), a power of two as scale of each 32 (OCP Microscaling v1.0), inputs as they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.quant.fp4 import pack_fp4, unpack_fp4
from headrace.quant.scheme import Axes, Packed, Scheme, Spec

GROUP = 32
BIAS = 127


@dataclass(frozen=True)
class Mxfp4(Scheme):
    """weight uint8 [N, K / 2], even columns in low nibbles; scale uint8 [N, K / 32], the exponent plus 127."""

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(1, 2), "scale": Axes(1, GROUP)}

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        """See Scheme. The scale is the smallest that clips nothing by more than a quarter."""
        groups = weight_NK.float().unflatten(1, (-1, GROUP))
        peak = groups.abs().amax(2)
        # 2^e for a peak in [2^(e + 2), 1.75 * 2^(e + 2)), from there on the next: 7 would be clipped to 6.
        fraction, exponent = torch.frexp(peak)  # peak = fraction * 2^exponent, fraction in [0.5, 1)
        power = exponent - 3 + (fraction >= 1.75 / 2).int()
        scale = torch.where(peak > 0, power + BIAS, torch.zeros_like(power)).clamp(0, 254)
        values = groups / _power(scale.to(torch.uint8)).unsqueeze(2)
        return {"weight": pack_fp4(values.flatten(1)), "scale": scale.to(torch.uint8)}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        values = unpack_fp4(packed["weight"]).unflatten(1, (-1, GROUP))
        return (values * _power(packed["scale"]).unsqueeze(2)).flatten(1).to(dtype)


def _power(scale: Tensor) -> Tensor:
    """2^(scale - 127) in float32, exactly: the scale is its exponent field, but for 2^-127, which has none."""
    field = scale.int() << 23
    return torch.where(field == 0, 1 << 22, field).to(torch.int32).view(torch.float32)


# 5 lies half-way between 4 and 6.
SCHEMES = {"mxfp4": Mxfp4("mxfp4", Spec(4, "float", "group", GROUP), 1 / 5)}
