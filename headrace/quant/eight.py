"""What schemes with 8-bit weights share: products by kernels/scaled.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.norm import Norm
from headrace.kernels.rounding import rounded, static
from headrace.kernels.scaled import Weight8, gated_linear8, linear8, norm_linear8
from headrace.quant.grid import positive
from headrace.quant.scheme import Axes, Packed, Scheme


@dataclass(frozen=True)
class EightBits(Scheme):
    """Weights [N, K] in 8 bits, with a scale per row or per block of 128 x 128.

    weight [N, K]; scale [N, 1]; input_scale float32 [1] where inputs have one scale from calibration
    """

    largest: ClassVar[float]
    """What the largest number of a row, or of a token, becomes."""
    dtype: ClassVar[torch.dtype]

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(), "scale": Axes(1, 0), "input_scale": Axes(0, 0)}

    def seen(self, packed: Packed, x: Tensor) -> Tensor:
        if self.spec.activation is None:
            return x
        if self.spec.static:
            values, scale = static(x, packed["input_scale"], self.largest, self.dtype)
        else:
            values, scale = rounded(x, self.largest, self.dtype)
        return (values.float() * scale).to(x.dtype)

    def input_scale(self, peak_K: Tensor) -> Tensor:
        """What a static scheme rounds inputs by, float32 [1], of which these are the peaks."""
        return positive(peak_K.amax().reshape(1) / self.largest).float()

    def weight8(self, packed: Packed, bias: Tensor | None) -> Weight8:
        """As the kernels want it."""
        return Weight8(
            packed["weight"],
            packed["scale"],
            self.spec.activation is not None,
            packed["input_scale"] if self.spec.static else None,
            bias,
            self.spec.granularity == "block",
        )

    def apply(self, packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Scheme. Rounded inputs are summed up in float32, or as integers, and scaled once, as hardware does it."""
        return linear8(x, self.weight8(packed, bias))

    def normed(
        self, packed: Packed, x_TK: Tensor, residual_TK: Tensor | None, norm: Norm, *,
        bias: Tensor | None = None, gated: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        weight = self.weight8(packed, bias)
        return norm_linear8(x_TK, residual_TK, *norm, weight, gated)

    def gates(self, packed: Packed, x_TK: Tensor) -> bool:
        """See Scheme. A few tokens' activation is part of the product before; of more it is one with rounding."""
        tokens = x_TK.shape[0]
        few = configs.fetches8(configs.capability(x_TK.device), tokens) and self.spec.granularity != "block"
        return self.spec.activation is not None and tokens > 1 and not few

    def apply_gated(self, packed: Packed, gate_up_TF: Tensor, bias: Tensor | None = None) -> Tensor:
        return gated_linear8(gate_up_TF, self.weight8(packed, bias))

    def prepare(self, packed: Packed) -> dict[str, Tensor]:
        """See Scheme. Scales in float32, everything in one piece."""
        return {
            name: (tensor if name == "weight" else tensor.to(torch.float32)).contiguous()
            for name, tensor in packed.items()
        }
