"""Weights of a linear layer in the order that a CPU's 8-bit product wants them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from headrace.kernels.fixed import place_is_free
from headrace.kernels.hadamard import factors, largest, mixed
from headrace.kernels.int8 import Int8Weight
from headrace.quant.schemes.int8 import SCHEMES

MIXED = 128
"""Inputs that are turned with each other, at most."""
ROWS = 19
"""Tokens that a product is tried with: more than its blocks have, and no whole number of them."""


class Prepacked(nn.Module):
    """Stands in for the weight of a Linear. packed: "weight" int8 [N, K] and "scale" [N, 1], as of schemes/int8.py.

    factors  what inputs are mixed by before they are rounded; the weight is for such inputs. None: they are not
    With `deterministic` a token alone gets the bits that it gets among others.
    """

    deterministic = False

    def __init__(self, packed: Mapping[str, Tensor], factors: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.factors = factors
        self.weight = Int8Weight(packed["weight"], packed["scale"].flatten())

    @classmethod
    def of(
        cls, weight_NK: Tensor, turns: bool = False, made: Callable[[Tensor], Tensor] = Tensor.float
    ) -> "Prepacked":
        """A weight of any float dtype, rounded. `turns`: its inputs have numbers that stand out, and must be turned.

        `made`: what is done to some of its rows first, a whole number of schemes.int8.TOGETHER; gives float32.
        """
        if not turns:
            return cls(SCHEMES["int8"].pack(weight_NK, made))
        both = factors(largest(weight_NK.shape[1], MIXED))
        return cls(SCHEMES["int8"].pack(weight_NK, lambda rows: mixed(made(rows), *both)), both)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] to [..., N], in x's dtype."""
        if self.factors is not None:
            x = mixed(x, *self.factors, self.deterministic).to(x.dtype)
        # As the engine calls it: conversions to the same cost time, too.
        if x.dim() == 2 and x.dtype == torch.float32:
            out = self.weight.product(x, self.deterministic)
        else:
            flat = x.reshape(-1, x.shape[-1]).float()
            out = self.weight.product(flat, self.deterministic).to(x.dtype).view(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    def place_is_free(self) -> bool:
        """Whether this machine gives a token the same bits wherever it is among others, and alone."""
        if not all(map(place_is_free, self.factors or ())):
            return False
        size = self.weight.shape[1]
        x = torch.randn(ROWS, size, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        together = self.weight.product(x, fixed=True)
        return all(
            torch.equal(self.weight.product(x[n : n + 1], fixed=True)[0], together[n]) for n in range(ROWS)
        )
