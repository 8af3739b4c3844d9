"""What went into a linear layer while calibration texts ran, as passes want to know it.

T tokens, K columns of the layer's weight (its inputs).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from headrace.base.memory import give_back

if TYPE_CHECKING:
    from headrace.optimize.factor import Factor

Need = Literal["hessian", "sample"]
"""What a pass may ask for. A sample is always there, as are sums and peaks; a Hessian only where one asks for it."""

SAMPLE = 512
"""Rows of inputs that are kept as they are."""
PANEL = 256
ROWS = 64
"""Rows that are squared at once."""


@dataclass
class Inputs:
    """What went into a linear layer (K columns); projections that share an input share one.

    tokens      how many rows were seen; 0 where nothing was calibrated, and then all numbers are ones or None
    square_K    float32, sum of x^2
    peak_K      float32, max |x|
    hessian_KK  float32, sum of x x^T over tokens; None where no pass needs it, or once it was factored
    factor      what factor.py made of it, and how: once for all projections, in the same memory
    sample_TK   float32, up to SAMPLE rows spread evenly over what was seen; None where nothing was
    """

    tokens: int
    square_K: Tensor
    peak_K: Tensor
    hessian_KK: Tensor | None = None
    sample_TK: Tensor | None = None
    factor: "tuple[tuple[float, bool], Factor] | None" = None

    @classmethod
    def unknown(cls, columns: int, device: torch.device | str = "cpu") -> "Inputs":
        """Of a layer that nothing is known about: all columns count the same."""
        return cls(0, torch.ones(columns, device=device), torch.ones(columns, device=device))


class Collector:
    """Sums up inputs as they come, window after window.

    `total` rows will come; the sample is every total / SAMPLE-th of them. The order in which windows come decides the
    last bits of the sums, so it has to be the same for equal results.
    """

    def __init__(self, columns: int, total: int, needs: Collection[Need], device: torch.device | str):
        kept = min(total, SAMPLE)
        self._rows = [int((i + 0.5) * total / kept) for i in range(kept)]
        self._seen = self._kept = 0
        # Of the Hessian what is on the diagonal and below: the rest is the same again.
        self._lower = [
            torch.zeros(columns - start, stop - start, device=device) for start, stop in _panels(columns)
        ] if "hessian" in needs else []  # fmt: skip
        self._sample = torch.zeros(kept, columns, device=device)
        self._inputs = Inputs(total, torch.zeros(columns, device=device), torch.zeros(columns, device=device))

    def see(self, x_TK: Tensor) -> None:
        """The next rows."""
        x_TK = x_TK.detach().float()
        found = self._inputs
        for few in x_TK.split(ROWS):
            found.square_K.add_(few.square().sum(0))
            torch.maximum(found.peak_K, few.abs().amax(0), out=found.peak_K)
        for lower, (start, stop) in zip(self._lower, _panels(x_TK.shape[1]), strict=False):
            lower.addmm_(x_TK[:, start:].T, x_TK[:, start:stop])
        while self._kept < len(self._rows) and (row := self._rows[self._kept] - self._seen) < len(x_TK):
            self._sample[self._kept] = x_TK[row]
            self._kept += 1
        self._seen += len(x_TK)

    def finished(self) -> Inputs:
        """After the last rows."""
        found = self._inputs
        assert self._seen == found.tokens, f"{self._seen} rows of {found.tokens}"
        found.sample_TK = self._sample
        if self._lower:
            columns = len(found.square_K)
            found.hessian_KK = torch.empty(columns, columns, device=found.square_K.device)
            for start, stop in _panels(columns):
                lower = self._lower.pop(0)
                found.hessian_KK[start:, start:stop] = lower
                found.hessian_KK[start:stop, stop:] = lower[stop - start :].T
                del lower
                give_back()
        return found


def _panels(columns: int) -> Iterator[tuple[int, int]]:
    """Columns that are summed up together: an eighth, or some hundreds, for which a product is fast."""
    step = max(PANEL, -(-columns // 8))
    return ((start, min(start + step, columns)) for start in range(0, columns, step))
