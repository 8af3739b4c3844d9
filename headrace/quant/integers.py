"""What schemes share that keep weights as integers of a few bits and inputs as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from headrace.quant.grid import Grid, numbers
from headrace.quant.scheme import Axes, Packed, Scheme, Spec


@dataclass(frozen=True)
class Integers(Scheme):
    """Weights as signed integers with one scale per row or per group of columns, inputs as they are.

    weight   the values; `store` and `values` say how they lie
    scale    any float dtype [N, G], G = 1 for whole rows
    zero     int8 [N, G]; absent where symmetric
    order    int32 [K], where columns were sorted by group: column i of the values is column order[i] of the weight
    """

    bits: ClassVar[int]
    usual: ClassVar[int]
    """Columns in a group where a scheme's name says nothing."""
    columns_per_step: ClassVar[int] = 1
    """Columns in one element of the kept values."""

    @classmethod
    def of(cls, group: int, symmetric: bool) -> Self:
        """The scheme with groups of so many columns; 0 for whole rows."""
        size = "" if group == cls.usual else f"_g{group}" if group else "_row"
        name = f"w{cls.bits}a16{size}{'' if symmetric else '_asym'}"
        spec = Spec(cls.bits, "int", "group" if group else "channel", group, symmetric)
        # Half a step and the clipped half step at the far end; asymmetric, the span is up to twice the largest number
        # and the zero point is rounded, too. A scale in 8 bits of mantissa adds 1/256 of the number.
        return cls(name, spec, (1 if symmetric else 2) / ((1 << cls.bits) - 1) + 1 / 256)

    @classmethod
    def named(cls) -> dict[str, Self]:
        """All that go by a name."""
        made = (cls.of(group, symmetric) for group in (128, 64, 32, 0) for symmetric in (True, False))
        return {scheme.name: scheme for scheme in made}

    def store(self, values_NK: Tensor) -> Tensor:
        """Signed values (int8) as they are kept."""
        return values_NK

    def values(self, packed: Packed) -> Tensor:
        """Back: int8 [N, K]."""
        return packed["weight"]

    @property
    def axes(self) -> Mapping[str, Axes]:
        scales = Axes(1, self.spec.group)
        return {
            "weight": Axes(1, self.columns_per_step), "scale": scales, "zero": scales, "order": Axes(0, 0),
        }  # fmt: skip

    @property
    def grid(self) -> Grid:
        """See Scheme. Symmetric scales are max / ((2^b - 1) / 2), as in compressed-tensors: it halves the error of the
        most negative."""
        high = (1 << int(self.spec.bits) - 1) - 1
        steps = 2 * high + 1
        span = steps / 2 if self.spec.symmetric else steps
        return Grid(-high - 1, high, span, self.spec.group, zeros=not self.spec.symmetric)

    def of_values(self, values_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> dict[str, Tensor]:
        return super().of_values(self.store(values_NK), scale_NG, zero_NG)

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        values_NGC = self.values(packed).unflatten(1, (packed["scale"].shape[1], -1)).float()
        zero = packed["zero"].unsqueeze(2) if "zero" in packed else None
        weight = numbers(values_NGC, packed["scale"].unsqueeze(2), zero).flatten(1).to(dtype)
        if "order" not in packed:
            return weight
        return torch.empty_like(weight).index_copy_(1, packed["order"].long(), weight)
