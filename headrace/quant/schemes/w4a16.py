"""Weights as 4-bit integers in groups of columns, inputs as they are."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headrace.quant.bits import WORD, pack_bits, unpack_bits
from headrace.quant.integers import Integers
from headrace.quant.scheme import Packed, Spec

BITS = 4


@dataclass(frozen=True)
class Int4(Integers):
    """weight int32 [N, K / 8]: eight values to a word, value + 8, lowest bits first."""

    columns_per_step: ClassVar[int] = WORD // BITS

    def fits(self, rows: int, columns: int) -> str | None:
        """See Scheme."""
        if columns % self.columns_per_step:
            return f"{columns} columns do not fill words of {self.columns_per_step} values"
        return super().fits(rows, columns)

    def store(self, values_NK: Tensor) -> Tensor:
        """See Integers."""
        return pack_bits(values_NK.int() + (1 << BITS - 1), BITS)

    def values(self, packed: Packed) -> Tensor:
        """See Integers."""
        weight = packed["weight"]
        return unpack_bits(weight, BITS, weight.shape[1] * self.columns_per_step).char() - (1 << BITS - 1)


def scheme_of(group: int, symmetric: bool) -> Int4:
    """The scheme with groups of so many columns; 0 for whole rows."""
    tail = {128: "", 0: "_row"}.get(group, f"_g{group}") + ("" if symmetric else "_asym")
    spec = Spec(BITS, "int", "group" if group else "channel", group, symmetric)
    # Half a step and the clipped half step at the far end; asymmetric, the span is up to twice the largest number
    # and the zero point is rounded, too. A scale in 8 bits of mantissa adds 1/256 of the number.
    return Int4(f"w4a16{tail}", spec, (0.5 / 7.5 if symmetric else 2 / 15) + 1 / 256)


SCHEMES = {
    made.name: made
    for made in (scheme_of(group, symmetric) for group in (128, 64, 32, 0) for symmetric in (True, False))
}
