"""Weights as 8-bit integers with a scale per row, inputs rounded to 8-bit integers: the product is of integers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.quant.eight import EightBits
from headrace.quant.grid import Grid, numbers
from headrace.quant.scheme import Packed, Spec

LARGEST = 127.0


@dataclass(frozen=True)
class Int8Product(EightBits):
    """See EightBits. A static scheme's input_scale comes from calibration; the caller adds it."""

    largest, dtype = LARGEST, torch.int8

    @property
    def grid(self) -> Grid:
        return Grid(-128, 127, 127.5)

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        return numbers(packed["weight"].float(), packed["scale"], None).to(dtype)


def _scheme(name: str, is_static: bool) -> Int8Product:
    spec = Spec(8, "int", "channel", activation="int8", static=is_static)
    return Int8Product(name, spec, 0.5 / 127.5 + 1 / 256)


SCHEMES = {name: _scheme(name, name.endswith("static")) for name in ("w8a8", "w8a8_static")}
