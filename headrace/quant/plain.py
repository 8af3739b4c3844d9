"""A weight as it is, for layers that have quantized ones joined to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.quant.scheme import Axes, Packed, Scheme, Spec


@dataclass(frozen=True)
class Plain(Scheme):
    """weight [N, K] of any float dtype."""

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes()}

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        return {"weight": weight_NK}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        return packed["weight"].to(dtype)


PLAIN = Plain("none", Spec(16, "float", "channel"), 0.0)
