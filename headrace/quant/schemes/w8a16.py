"""Weights as 8-bit integers, inputs as they are."""

from dataclasses import dataclass

from torch import Tensor

from headrace.quant.integers import Integers
from headrace.quant.scheme import Packed, Spec

BITS = 8


@dataclass(frozen=True)
class Int8(Integers):
    """weight int8 [N, K]. Checkpoints with 2, 3, 5, 6 or 7 bits are held so, too: the values fit."""

    def store(self, values_NK: Tensor) -> Tensor:
        """See Integers."""
        return values_NK

    def values(self, packed: Packed) -> Tensor:
        """See Integers."""
        return packed["weight"]


def scheme_of(group: int, symmetric: bool) -> Int8:
    """The scheme with groups of so many columns; 0 for whole rows."""
    tail = {0: ""}.get(group, f"_g{group}") + ("" if symmetric else "_asym")
    spec = Spec(BITS, "int", "group" if group else "channel", group, symmetric)
    # As in w4a16.py.
    return Int8(f"w8a16{tail}", spec, (0.5 / 127.5 if symmetric else 2 / 255) + 1 / 256)


SCHEMES = {
    made.name: made
    for made in (scheme_of(group, symmetric) for group in (0, 128, 64, 32) for symmetric in (True, False))
}
