"""AWQ: channels that inputs make important are enlarged in the weights before these are rounded.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", eq. 4 and 5.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.base.errors import Refused, UnknownName
from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.optimize.inputs import Inputs, Need
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
NARROWEST, CLIPS = 0.5, 10
"""A clipped group keeps at least half of its largest number; so many ways of clipping are tried."""
ROWS = 1024
"""Rows of a weight that are clipped at once: the search holds a few copies of them."""


@dataclass(frozen=True)
class Awq:
    """Tries scales s = mean|x|^alpha for `steps` values of alpha and takes those that change products least.

    steps   how many alphas from 0 (nothing is scaled) to below 1 are tried
    inner   whether also between v and o_proj, and between up and down_proj, where no norm lies between: "rounded"
            (where the scheme rounds inputs, too: there it helps most; elsewhere it was measured to cost), "always",
            "never"
    clip    afterwards cut off the largest weights of each group where products with the sample gain by it, as the
            authors' program does: then weights change a little. Of use where what rounds them does not look for the
            best range itself, which rtn and gptq do
    """

    steps: int = 20
    inner: str = "rounded"
    clip: bool = False

    name: ClassVar[str] = "awq"
    needs: ClassVar[frozenset[Need]] = frozenset({"sample"})

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range, UnknownName for a word that is not known."""
        if not 2 <= self.steps <= 1000:
            raise Refused(f"steps of awq is {self.steps}; expected 2 to 1000", param="awq.steps")
        if self.inner not in INNER:
            raise UnknownName.among("choice for inner of awq", self.inner, list(INNER), param="awq.inner")

    @torch.no_grad()
    def change(
        self, block: Block, inputs: Mapping[Linear, Inputs], schemes: Callable[[Linear], Scheme | None]
    ) -> None:
        """Scale the inputs of a block's layers, in place; what it computes stays the same unless clipped."""
        for seam in seams(block):
            scheme = schemes(seam.layer)
            if scheme is None:
                continue
            trial = Trial(seam, scheme, inputs[seam.layer])
            rounds = scheme.spec.activation is not None
            if not seam.inner or self.inner == "always" or (self.inner == "rounded" and rounds):
                scale_C = self.best(trial)
                trial.sample_TK /= seam.columns(scale_C)
                seam.move(scale_C)
            if self.clip:
                for rows in trial.clippable():
                    clip(rows, scheme, trial.sample_TK)

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
        self.sample_TK = inputs.sample_TK.to(device, torch.float32, copy=True)
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

    def clippable(self) -> Iterator[Tensor]:
        """Rows of the weight a few at a time, as views; none of q and k, whose products are multiplied again."""
        parts = self.seam.layer.weight.data.split(self.seam.layer.outputs)
        for part in parts[2:] if len(parts) == 3 else parts:
            yield from part.split(ROWS)


def clip(weight_NK: Tensor, scheme: Scheme, sample_TK: Tensor) -> None:
    """Cut off what is largest in each group of columns, in place, where the group's products gain by it."""
    spec = scheme.spec
    if spec.granularity not in ("group", "channel"):
        return
    columns = weight_NK.shape[1]
    group = spec.group or columns
    x_GTC = sample_TK.unflatten(1, (-1, group)).transpose(0, 1)
    gram_GCC = x_GTC.mT @ x_GTC
    plain_NGC = weight_NK.float().unflatten(1, (-1, group))
    peak_NG1 = plain_NGC.abs().amax(2, keepdim=True)
    best_NGC, least_NG = plain_NGC, torch.full(peak_NG1.shape[:2], torch.inf, device=weight_NK.device)
    for step in range(CLIPS + 1):
        bound = peak_NG1 * (1 - (1 - NARROWEST) * step / CLIPS)
        cut_NGC = torch.minimum(torch.maximum(plain_NGC, -bound), bound)
        rounded = scheme.unpack(scheme.pack(cut_NGC.flatten(1))).view_as(cut_NGC)
        lost_GNC = (rounded - plain_NGC).transpose(0, 1)
        loss_NG = ((lost_GNC @ gram_GCC) * lost_GNC).sum(2).T
        better = loss_NG < least_NG
        least_NG = torch.where(better, loss_NG, least_NG)
        best_NGC = torch.where(better.unsqueeze(2), cut_NGC, best_NGC)
    weight_NK.copy_(best_NGC.flatten(1))


PASS = Awq
