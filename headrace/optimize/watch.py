"""Runs a block while its linear layers are watched: what goes into them, with those already rounded as they will be.

T tokens, E hidden size, K columns of a layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.nn.packed import PackedRows
from headrace.nn.step import Whole
from headrace.optimize.inputs import Collector
from headrace.quant.scheme import Packed, Scheme


@dataclass(frozen=True)
class Part:
    """Rows start to stop of a layer that have been rounded: how inputs of the product are rounded, too."""

    scheme: Scheme
    packed: Packed
    start: int
    stop: int


@dataclass
class Rounded:
    """The parts of each layer that have been rounded; their weights hold the rounded numbers."""

    parts: dict[Linear, list[Part]] = field(default_factory=dict[Linear, list[Part]])

    def product(self, layer: Linear, x: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer will give once it is packed, up to float rounding."""
        weight = layer.weight.data
        rounds = [part for part in self.parts.get(layer, ()) if part.scheme.spec.activation is not None]
        if not rounds:
            return functional.linear(x, weight, bias)
        first = rounds[0]
        if len(rounds) == len(layer.outputs) and all(_sees_alike(first, other) for other in rounds[1:]):
            return functional.linear(first.scheme.seen(first.packed, x), weight, bias)
        by_start = {part.start: part for part in rounds}
        outs, start = [], 0
        for rows in layer.outputs:
            part = by_start.get(start)
            seen = x if part is None else part.scheme.seen(part.packed, x)
            outs.append(functional.linear(seen, weight[start : start + rows]))
            start += rows
        out = torch.cat(outs, dim=-1)
        return out if bias is None else out + bias


def _sees_alike(one: Part, other: Part) -> bool:
    scales = [part.packed.get("input_scale") for part in (one, other)]
    if one.scheme != other.scheme or (scales[0] is None) != (scales[1] is None):
        return False
    return scales[0] is None or scales[1] is None or torch.equal(scales[0], scales[1])


class Enough(Exception):
    """The last layer that was to be watched has been reached; what comes after it need not be computed."""


class Shown(PackedRows):
    """Stands in for a layer's packed weight, so that inputs pass through here on every device, in one way."""

    def __init__(self, layer: Linear, rounded: Rounded, collector: Collector | None, last: bool):
        nn.Module.__init__(self)
        self.parts = nn.ModuleList()
        self._run = lambda x, bias: rounded.product(layer, x, bias)
        self._collector, self._last = collector, last

    @property
    def whole(self) -> None:
        """No kernel that does more than this product is wanted."""
        return None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] to [..., N]; raises Enough after the last one that is watched."""
        if self._collector is not None:
            self._collector.see(x)
        if self._last:
            raise Enough
        return self._run(x, bias)


def linears(block: Block) -> list[Linear]:
    """In the order in which they run."""
    return [module for module in block.modules() if isinstance(module, Linear)]


@contextmanager
def watching(block: Block, rounded: Rounded, collectors: Mapping[Linear, Collector]) -> Iterator[None]:
    """Within it a block's layers hand their inputs to their collectors; the last of these ends the run by Enough."""
    layers = linears(block)
    watched = [layer for layer in layers if layer in collectors]
    for layer in layers:
        layer.packed = Shown(layer, rounded, collectors.get(layer), bool(watched) and layer is watched[-1])
    try:
        yield
    finally:
        for layer in layers:
            layer.packed = None


@torch.inference_mode()
def run(block: Block, x_TE: Tensor, step: Whole) -> Tensor:
    """The hidden state after a block, from the one before it."""
    x_TE, residual_TE = block(x_TE, None, step)
    return x_TE + residual_TE
