"""Weights as 8-bit integers with a scale per row, inputs rounded to 8-bit integers: the product is of integers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.quant.eight import EightBits
from headrace.quant.integers import from_grid, grid, to_grid
from headrace.quant.scheme import Axes, Packed, Spec
from headrace.quant.tokens import rounded, static

LARGEST = 127.0


@dataclass(frozen=True)
class Int8Product(EightBits):
    """weight int8 [N, K]; scale [N, 1]; input_scale float32 [1] where inputs have one scale from calibration."""

    @property
    def axes(self) -> Mapping[str, Axes]:
        """See Scheme."""
        return {"weight": Axes(), "scale": Axes(1, 0), "input_scale": Axes(0, 0)}

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        """See Scheme. A static scheme's input_scale comes from calibration; the caller adds it."""
        whole = weight_NK.unsqueeze(1)
        scale, _ = grid(whole, 8, True, weight_NK.dtype)
        return {"weight": to_grid(whole, scale, None, 8).flatten(1), "scale": scale}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        """See Scheme."""
        return from_grid(packed["weight"].unsqueeze(1), packed["scale"], None).flatten(1).to(dtype)

    def inputs(self, packed: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs as int8 [..., K] and their scales in float32 [..., 1]."""
        if self.spec.static:
            return static(x, packed["input_scale"], LARGEST, torch.int8)
        return rounded(x, LARGEST, torch.int8)

    def seen(self, packed: Packed, x: Tensor) -> Tensor:
        """See Scheme."""
        values, scale = self.inputs(packed, x)
        return (values * scale).to(x.dtype)


def _scheme(name: str, is_static: bool) -> Int8Product:
    spec = Spec(8, "int", "channel", activation="int8", static=is_static)
    return Int8Product(name, spec, 0.5 / 127.5 + 1 / 256)


SCHEMES = {name: _scheme(name, name.endswith("static")) for name in ("w8a8", "w8a8_static")}
