"""Weights as 8-bit integers, inputs as they are."""

from dataclasses import dataclass

from torch import Tensor

from headrace.kernels.norm import Norm
from headrace.kernels.scaled import Weight8, linear8, norm_linear8
from headrace.quant.integers import Integers
from headrace.quant.scheme import Packed


@dataclass(frozen=True)
class Int8(Integers):
    """weight int8 [N, K]. Checkpoints with 2, 3, 5, 6 or 7 bits are held so, too: the values fit."""

    bits, usual = 8, 0

    def by_rows(self, packed: Packed, bias: Tensor | None) -> Weight8 | None:
        """For the kernels, which know one scale per row and no zero points; None for what they do not."""
        if packed.keys() != {"weight", "scale"} or packed["scale"].shape[1] > 1:
            return None
        return Weight8(packed["weight"], packed["scale"], rounded=False, bias=bias)

    def apply(self, packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = self.by_rows(packed, bias)
        return super().apply(packed, x, bias) if weight is None else linear8(x, weight)

    def normed(
        self, packed: Packed, x_TK: Tensor, residual_TK: Tensor | None, norm: Norm, *,
        bias: Tensor | None = None, gated: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        weight = self.by_rows(packed, bias)
        if weight is None:
            return super().normed(packed, x_TK, residual_TK, norm, bias=bias, gated=gated)
        return norm_linear8(x_TK, residual_TK, *norm, weight, gated)

    def prepare(self, packed: Packed) -> dict[str, Tensor]:
        return {name: tensor.contiguous() for name, tensor in packed.items()}


SCHEMES = Int8.named()
