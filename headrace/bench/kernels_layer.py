"""Chooses configurations of a layer's four products inside the layer: launches overlap there, and alone others win."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.bench import kernels_eight as eight
from headrace.bench import kernels_linear as linear
from headrace.bench.kernels import Say
from headrace.bench.kernels_attention import alike, decode_after_store, few
from headrace.bench.kernels_case import Launch, Layer, Sizes, Way, draw
from headrace.bench.replay import copies_of, elapsed_ms, recorded
from headrace.kernels import configs
from headrace.kernels.choices import Gemv8
from headrace.kernels.gpu.product import Fusion
from headrace.kernels.rules import Capability

KEYS = 640
"""Of every row."""
ORDER = ("gate_up", "o", "down", "qkv", "gate_up", "o")
"""In which products are chosen; two once more, as the others have changed by then."""
MARGIN = 1e-3
"""Part of a layer's time that another configuration must save."""
WARM, ROUNDS, REPLAYS = 400, 7, 4
"""Replays before the first that counts; turns of two graphs; replays that are timed at once."""

Config = linear.Config | Gemv8
Use = Mapping[str, Config]
"""Configurations by the names of layers; None is the library."""
Timer = Callable[[int], float]
"""Microseconds of a layer, on average over so many replays."""


class Block(NamedTuple):
    """A model's layer for so many tokens; `eight`: one token, and weights of 8-bit floats."""

    sizes: Sizes
    tokens: int
    eight: bool = False

    def __str__(self) -> str:
        return f"{self.sizes.name} {'linear8' if self.eight else 'linear'} {self.tokens}"

    @property
    def layers(self) -> dict[str, Layer]:
        """Its products."""
        return {layer.name: layer for layer in self.sizes.layers if layer.name != "head"}

    @property
    def multiply(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """(out, x + before) of x, a weight, its configuration and what surrounds the product."""
        return eight.gemv if self.eight else linear.multiply

    def weights(self, layer: Layer, copies: int, device: torch.device) -> Sequence[object]:
        """Copies of a product's weight."""
        made = partial(eight.weights, kind="fp8") if self.eight else linear.weights
        return made(layer, copies=copies, device=device)

    def used(self, cap: Capability) -> Use:
        """What the tables choose so far, of `middle` nothing."""
        shapes = {name: (layer.n, layer.k, layer.gated) for name, layer in self.layers.items()}
        if self.eight:
            return {name: configs.gemv8(cap, *shape) for name, shape in shapes.items()}
        if self.tokens == 1:
            return {name: configs.gemv(cap, *shape) for name, shape in shapes.items()}
        return {name: configs.skinny(cap, self.tokens, *shape) for name, shape in shapes.items()}


class Candidate(NamedTuple):
    """A configuration that may serve one of a block's products."""

    block: Block
    name: str
    config: Config

    def make(self, copies: int, device: torch.device) -> Launch:
        """Its product by itself, to compile it."""
        block, layer = self.block, self.block.layers[self.name]
        x, around = draw(block.tokens, layer.k, device=device), linear.fusion(layer, block.tokens, device)
        weights = block.weights(layer, copies, device)
        return Launch([partial(block.multiply, x, w, self.config, around) for w in weights], lambda: 0.0)


class Memory:
    """What a block's launches read: weights, keys and values in copies, so many that L2 has none by its next turn."""

    def __init__(self, block: Block, copies: int, device: torch.device):
        tokens, size, layers = block.tokens, block.sizes.head_dim, block.layers
        self.multiply = block.multiply
        self.weights = {name: block.weights(layer, copies, device) for name, layer in layers.items()}
        self.around = {name: linear.fusion(layer, tokens, device) for name, layer in layers.items()}
        self.x = {name: draw(tokens, layers[name].k, device=device) for name in ("qkv", "o")}
        one = configs.paged_few(configs.capability(device), size, tokens)
        attention = partial(few, config=one) if one else decode_after_store
        self.attend = attention(alike(tokens, KEYS), block.sizes, Way(), copies, device).calls

    def launch(self, use: Use, copy: int) -> Tensor:
        """A layer, [T, hidden]. Attention has inputs and outputs of its own, of the same sizes."""

        def product(name: str, x: Tensor, around: Fusion) -> tuple[Tensor, Tensor]:
            return self.multiply(x, self.weights[name][copy], use[name], around)

        _, total = product("qkv", self.x["qkv"], self.around["qkv"])
        self.attend[copy]()
        out, _ = product("o", self.x["o"], self.around["o"])
        out, _ = product("gate_up", out, replace(self.around["gate_up"], before=total))
        return product("down", out, self.around["down"])[0]

    def record(self, use: Use) -> Timer:
        """A graph of the layer over each copy in turn."""
        graph, layers = recorded([partial(self.launch, use, copy) for copy in range(len(self.attend))])
        return lambda count: elapsed_ms(graph, count) * 1e3 / count / layers


def versus(base: Timer, other: Timer) -> tuple[float, float]:
    """Medians of turns: what the clock does meanwhile, it does to both."""
    turns = [(base(REPLAYS), other(REPLAYS)) for _ in range(ROUNDS)]
    return median(us for us, _ in turns), median(us for _, us in turns)


def descend(
    use: Use, candidates: Mapping[str, Sequence[Config]], record: Callable[[Use], Timer], say: Say
) -> Use:
    """Coordinate descent from `use`: the best of each product's candidates in turn, while the others stay."""
    base = record(use)
    for name in ORDER:
        best, least = use, 1 - MARGIN
        for config in candidates.get(name, ()):
            if config == use[name]:
                continue
            tried = {**use, name: config}
            before, after = versus(base, record(tried))
            say(f"{name} {configs.brief(config)}: {after:.2f} us a layer, as it is {before:.2f}")
            if after < least * before:
                best, least = tried, after / before
        if best is not use:
            use, base = best, record(best)
    return use


def tune(block: Block, candidates: Mapping[str, Sequence[Config]], say: Say) -> Use:
    """The fastest of these by name of the product; where none is, what the tables choose so far."""
    device = torch.device("cuda")
    layers = sum(layer.bytes for layer in block.layers.values()) // (2 if block.eight else 1)
    memory, start = Memory(block, copies_of(layers), device), block.used(configs.capability(device))
    first = memory.record(start)
    first(WARM)
    use = descend(start, candidates, memory.record, lambda text: say(f"{block} {text}"))
    before, after = versus(first, memory.record(use))
    say(f"{block}: {after:.2f} us a layer, {before:.2f} before")
    return use
