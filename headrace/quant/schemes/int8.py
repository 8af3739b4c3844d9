"""Weights as 8-bit integers with a scale per row, inputs as 8-bit integers with a scale and zero point per token.

What a CPU multiplies fastest (headrace/kernels/int8.py). The inputs' zero point costs nothing there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.quant.grid import Grid, positive
from headrace.quant.scheme import Axes, Packed, Scheme, Spec

LARGEST, LEVELS = 127, 255
PIECE = 1 << 17
"""Elements rounded at once, so that what is in between stays in the cache of a core."""
TOGETHER = 64
"""Rows of a piece are a whole number of so many."""


@dataclass(frozen=True)
class Int8(Scheme):
    """weight int8 [N, K]; scale float32 [N, 1]."""

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(), "scale": Axes(1, 0)}

    @property
    def grid(self) -> Grid:
        return Grid(-LARGEST, LARGEST, LARGEST, wide=True)

    def pack(self, weight_NK: Tensor, made: Callable[[Tensor], Tensor] = Tensor.float) -> dict[str, Tensor]:
        """See Scheme. `made` gives the numbers, in float32, that some rows of the weight are rounded as."""
        values = torch.empty(weight_NK.shape, dtype=torch.int8, device=weight_NK.device)
        scale = torch.empty(len(weight_NK), 1, device=weight_NK.device)
        step = max(1, PIECE // TOGETHER // max(1, weight_NK.shape[1])) * TOGETHER
        for start in range(0, len(weight_NK), step):
            rows = slice(start, start + step)
            piece = made(weight_NK[rows])
            scale[rows] = piece.abs().amax(1, keepdim=True).div_(LARGEST)
            scale[rows].masked_fill_(scale[rows] == 0, 1.0)
            values[rows] = (piece / scale[rows]).round_().clamp_(-LARGEST, LARGEST)
        return {"weight": values, "scale": scale}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        """See Scheme."""
        return (packed["weight"].float() * packed["scale"]).to(dtype)

    def seen(self, packed: Packed, x: Tensor) -> Tensor:
        """See Scheme. Zero is among the numbers that each token can say."""
        wide = x.float()
        low, high = wide.amin(-1, keepdim=True).clamp(max=0), wide.amax(-1, keepdim=True).clamp(min=0)
        scale = positive((high - low) / LEVELS)
        zero = torch.round(-low / scale)
        return ((torch.round(wide / scale + zero).clamp(0, LEVELS) - zero) * scale).to(x.dtype)


SCHEMES = {"int8": Int8("int8", Spec(8, "int", "channel", activation="int8"), 0.5 / LARGEST)}
