"""SmoothQuant: part of what stands out in inputs is moved into weights, so that 8 bits are enough for both.

Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", eq. 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.optimize.inputs import Inputs, Need
from headrace.optimize.passes import check_ranges
from headrace.optimize.passes._seams import Seam, seams
from headrace.quant.scheme import Scheme

LEAST = 1e-5
"""Peaks below this count as this: a channel that is never used must not get an endless scale."""


@dataclass(frozen=True)
class SmoothQuant:
    """Layers whose scheme leaves inputs as they are stay as they are, too: their weights would only get harder.

    alpha   how much is moved: 0 nothing of the inputs' peaks, 1 all of them
    inner   also between v and o_proj, and between up and down_proj, where no norm lies between
    """

    alpha: float = 0.5
    inner: bool = False

    name: ClassVar[str] = "smoothquant"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range."""
        check_ranges(self, alpha=(0, 1))

    def fits(self, scheme: Scheme) -> str | None:
        """Why this pass does nothing for layers of that scheme."""
        if scheme.spec.activation is None:
            return f"{scheme.name} does not round inputs, which is all that smoothquant helps with"
        return None

    @torch.no_grad()
    def change(
        self, block: Block, inputs: Mapping[Linear, Inputs], schemes: Callable[[Linear], Scheme | None]
    ) -> None:
        """Smooth the inputs of a block's layers, in place; what it computes stays the same."""
        for seam in seams(block):
            scheme = schemes(seam.layer)
            if scheme is None or self.fits(scheme) or (seam.inner and not self.inner):
                continue
            seam.move(self.scale(seam, inputs[seam.layer].peak_K))

    def scale(self, seam: Seam, peak_K: Tensor) -> Tensor:
        """Eq. 4: max |x_j|^alpha / max |w_j|^(1 - alpha), for each channel [C]."""
        weight = seam.layer.weight.data
        of_inputs = seam.most(peak_K.to(weight.device)).clamp_min(LEAST)
        of_weights = seam.most(weight.abs().amax(0).float()).clamp_min(LEAST)
        return (of_inputs**self.alpha / of_weights ** (1 - self.alpha)).clamp_min(LEAST)


PASS = SmoothQuant
