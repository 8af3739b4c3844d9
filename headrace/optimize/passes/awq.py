"""AWQ: channels that inputs make important are enlarged in the weights before these are rounded.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", eq. 4 and 5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.base.errors import UnknownName
from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.optimize.inputs import Inputs, Need
from headrace.optimize.passes import check_ranges
from headrace.optimize.passes._seams import Seam, seams
from headrace.optimize.passes.rtn import Rtn
from headrace.quant.eight import EightBits
from headrace.quant.scheme import Scheme

LEAST = 1e-4
"""Mean inputs below this count as this."""
TINY = torch.finfo(torch.float32).tiny
ROUNDING = Rtn(steps=8, least=0.65)
"""How scales are tried: as they will be used, by rounding that looks for the best range, if less closely."""
TRIED = 256
"""Rows of each projection that scales are tried on, spread evenly: they decide together, and a few stand for all."""
INNER = ("rounded", "always", "never")


@dataclass(frozen=True)
class Awq:
    """Tries scales s = mean|x|^alpha for `steps` values of alpha and takes those that change products least.

    steps   how many alphas from 0 (nothing is scaled) to below 1 are tried
    inner   whether also between v and o_proj, and between up and down_proj, where no norm lies between: "rounded"
            (where the scheme rounds inputs, too: there it helps most; elsewhere it was measured to cost), "always",
            "never"
    """

    steps: int = 20
    inner: str = "rounded"

    name: ClassVar[str] = "awq"
    needs: ClassVar[frozenset[Need]] = frozenset({"sample"})

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range, UnknownName for a word that is not known."""
        check_ranges(self, steps=(2, 1000))
        if self.inner not in INNER:
            raise UnknownName.among("choice for inner of awq", self.inner, list(INNER), param="awq.inner")

    @torch.no_grad()
    def change(
        self, block: Block, inputs: Mapping[Linear, Inputs], schemes: Callable[[Linear], Scheme | None]
    ) -> None:
        """Scale the inputs of a block's layers, in place; what it computes stays the same."""
        for seam in seams(block):
            scheme = schemes(seam.layer)
            if scheme is None:
                continue
            rounds = scheme.spec.activation is not None
            if not seam.inner or self.inner == "always" or (self.inner == "rounded" and rounds):
                seam.move(self.best(Trial(seam, scheme, inputs[seam.layer])))

    def best(self, trial: "Trial") -> Tensor:
        """The scale of each channel [C] with which rounding changes the products of the sample least (eq. 4)."""
        mean_C = trial.seam.mean(trial.sample_TK.abs().mean(0)).clamp_min(LEAST)
        best = torch.ones_like(mean_C)
        least = trial.loss(best)
        for step in range(1, self.steps):
            scale_C = mean_C ** (step / self.steps)  # eq. 5
            scale_C = scale_C / (scale_C.amax() * scale_C.amin()).sqrt()
            loss = trial.loss(scale_C)
            if loss < least:
                best, least = scale_C, loss
        return best


class Trial:
    """What rounding does to the products of a layer with a sample of its inputs (T rows) when channels are scaled."""

    def __init__(self, seam: Seam, scheme: Scheme, inputs: Inputs):
        assert inputs.sample_TK is not None
        device = seam.layer.weight.device
        self.seam, self.scheme, self.inputs = seam, scheme, inputs
        self.sample_TK = inputs.sample_TK.to(device, torch.float32)
        parts = seam.layer.weight.data.split(seam.layer.outputs)
        self.weights = [part[:: -(-len(part) // TRIED)].float() for part in parts]
        self.wanted = [self.sample_TK @ weight.T for weight in self.weights]

    def loss(self, scale_C: Tensor) -> float:
        """||Q(W s) (x / s) - W x||^2, each projection's as a share of what it gives."""
        scale_K = self.seam.columns(scale_C)
        x_TK = self.sample_TK / scale_K
        square_K, peak_K = (each.to(scale_K.device) for each in (self.inputs.square_K, self.inputs.peak_K))
        scaled = Inputs(self.inputs.tokens, square_K / scale_K.square(), peak_K / scale_K)
        loss = 0.0
        for weight, wanted in zip(self.weights, self.wanted, strict=True):
            packed = ROUNDING.pack(weight * scale_K, self.scheme, scaled)
            if self.scheme.spec.static:
                assert isinstance(self.scheme, EightBits)
                packed["input_scale"] = self.scheme.input_scale(scaled.peak_K)
            out = self.scheme.seen(packed, x_TK) @ self.scheme.unpack(packed).T
            loss += float((out - wanted).square().sum() / wanted.square().sum().clamp_min(TINY))
        return loss


PASS = Awq
