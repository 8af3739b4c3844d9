"""What schemes with 8-bit weights share: products by kernels/scaled.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.norm import Norm
from headrace.kernels.scaled import Weight8, gated_linear8, linear8, norm_linear8
from headrace.quant.scheme import Packed, Scheme


@dataclass(frozen=True)
class EightBits(Scheme):
    """Weights [N, K] in 8 bits, with a scale per row or per block of 128 x 128."""

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
        """See Scheme."""
        weight = self.weight8(packed, bias)
        return norm_linear8(x_TK, residual_TK, *norm, weight, gated)

    def gates(self, packed: Packed, x_TK: Tensor) -> bool:
        """See Scheme. One token's activation is part of the product before; of more it is one with rounding."""
        return self.spec.activation is not None and x_TK.shape[0] > 1

    def apply_gated(self, packed: Packed, gate_up_TF: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Scheme."""
        return gated_linear8(gate_up_TF, self.weight8(packed, bias))

    def prepare(self, packed: Packed) -> dict[str, Tensor]:
        """See Scheme. Scales in float32, everything in one piece."""
        return {
            name: (tensor if name == "weight" else tensor.to(torch.float32)).contiguous()
            for name, tensor in packed.items()
        }
