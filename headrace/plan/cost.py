"""How long a step takes: bytes over bandwidth and operations over arithmetic, each at what an engine reaches of it.

All of it is plain arithmetic on numbers or on numpy arrays, so one call prices one step or ten thousand. The
formulas are in docs/plan.md (roofline: Williams, Waterman, Patterson, 2009).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.plan.anatomy import Anatomy
from headrace.plan.efficiency import Efficiency
from headrace.plan.gpus import Gpu
from headrace.plan.scheme import Scheme

Number = Any
"""float, or a numpy array of them."""

SHARP = 3.0
"""Exponent of the norm that joins two limits: 1 adds them, infinity takes the larger one alone."""
REDUCE_US = 8.0
"""One all-reduce of few bytes among the devices of a machine."""
NEAR = 0.4
"""Time to read a key that the device's cache has, against one that it has not."""
LINK = 0.7
"""Part of a link's speed that an all-reduce of many bytes reaches."""


class Work(NamedTuple):
    """One step, or many as arrays. `keys`, `near` and `pairs` have one entry per kind of attention."""

    rows: Number
    """Rows that get a token."""
    tokens: Number
    """Tokens that go through the layers: one per row, and the pieces of prompts."""
    keys: tuple[Number, ...]
    """Keys that rows with one token read, added over rows."""
    near: tuple[Number, ...]
    """Those of `keys` that all rows have in common: the device's cache has them after the first row."""
    pairs: tuple[Number, ...]
    """Pairs of query and key in the pieces of prompts."""


class Parts(NamedTuple):
    """Seconds of a step by what they go for."""

    weights: Number
    """Reading the layers' weights, were that the only limit."""
    arithmetic: Number
    """Multiplying with them, were that the only limit."""
    layers: Number
    """Both together."""
    head: Number
    kv: Number
    attention: Number
    moves: Number
    reduce: Number
    overhead: Number

    @property
    def total(self) -> Number:
        return self.layers + self.head + self.kv + self.attention + self.moves + self.reduce + self.overhead


@dataclass(frozen=True, slots=True)
class Setup:
    """A model on devices, kept in a scheme, run by an engine of that efficiency."""

    anatomy: Anatomy
    gpu: Gpu
    gpus: int
    scheme: Scheme
    kv_bits: float
    reach: Efficiency

    def bytes_of(self, weights: float) -> float:
        """Bytes of matrices in the scheme (of experts only, where it is for them)."""
        bits = self.scheme.rest if self.scheme.experts_only else self.scheme.bits
        return weights * bits / 8

    def bytes_of_experts(self, weights: Number) -> Number:
        return weights * self.scheme.bits / 8

    def bytes_of_head(self) -> float:
        return self.anatomy.head * (self.scheme.bits if self.scheme.head else self.scheme.rest) / 8


def parts(setup: Setup, work: Work) -> Parts:
    """The seconds of a step."""
    model, reach, n = setup.anatomy, setup.reach, setup.gpus
    name = setup.scheme.name
    read = setup.gpu.bandwidth * reach.of("weights", name) * n
    multiply = setup.gpu.speed(setup.scheme.arithmetic) * reach.of("matmul", name) * n
    weights = _touched_bytes(setup, work.tokens) / read
    updates = sum(kind.update * layers for kind, layers in model.kinds)
    arithmetic = 2 * (model.linear + model.chosen + updates) * work.tokens / multiply
    kv, attention = _attend(setup, work)
    width = (model.linear + model.chosen) / model.hidden + 4 * model.hidden * len(model.layers)
    return Parts(
        weights=weights,
        arithmetic=arithmetic,
        layers=joined(weights, arithmetic),
        head=_head(setup, work.rows),
        kv=kv,
        attention=attention,
        moves=work.tokens * width * setup.scheme.rest / 8 / (setup.gpu.bandwidth * reach["moves"] * n),
        reduce=_reduce(setup, work.tokens),
        overhead=_overhead_us(setup, work.rows) * 1e-6,
    )


def _overhead_us(setup: Setup, rows: Number) -> Number:
    reach = setup.reach
    return reach["step_us"] + reach["layer_us"] * len(setup.anatomy.layers) + reach["row_us"] * rows


def joined(one: Number, other: Number) -> Number:
    """Two limits on the same work: near the larger, above both where they are alike."""
    return (one**SHARP + other**SHARP) ** (1 / SHARP)


def _touched_bytes(setup: Setup, tokens: Number) -> Number:
    """Bytes of the layers' weights that a step of `tokens` tokens reads; of experts, those that some token takes."""
    model = setup.anatomy
    fixed = setup.bytes_of(model.linear) + model.small * setup.scheme.rest / 8
    routed: Number = 0.0
    for experts, active, weights in _expert_groups(model):
        taken = 1 - (1 - active / experts) ** tokens
        routed = routed + setup.bytes_of_experts(weights * taken)
    return fixed + routed


def _expert_groups(model: Anatomy) -> list[tuple[int, int, int]]:
    """(experts, of them active, weights of all over the layers), once for each mixture that occurs."""
    found: Counter[tuple[int, int]] = Counter()
    for layer in model.layers:
        if layer.experts:
            found[layer.experts, layer.active] += layer.experts * layer.expert
    return [(*key, weights) for key, weights in found.items()]


def _head(setup: Setup, rows: Number) -> Number:
    """Logits of the rows that get a token."""
    own = setup.scheme.name if setup.scheme.head else "bf16"
    reach, n = setup.reach, setup.gpus
    read = setup.bytes_of_head() / (setup.gpu.bandwidth * reach.of("weights", own) * n)
    kind = setup.scheme.arithmetic if setup.scheme.head else "bf16"
    multiply = 2 * setup.anatomy.head * rows / (setup.gpu.speed(kind) * reach.of("matmul", own) * n)
    return joined(read, multiply)


def _attend(setup: Setup, work: Work) -> tuple[Number, Number]:
    """(reading the cache for rows with one token, attention of prompts)."""
    gpu, reach = setup.gpu, setup.reach
    read, multiply = gpu.bandwidth * reach["kv"], gpu.bf16 * reach["attention"] * setup.gpus
    kv: Number = 0.0
    attention: Number = 0.0
    for (kind, layers), keys, near, pairs in zip(
        setup.anatomy.kinds, work.keys, work.near, work.pairs, strict=True
    ):
        split = min(setup.gpus, kind.split)
        far = keys - near * (1 - NEAR)
        moved = layers * kind.kv * setup.kv_bits / 8 * far / (read * split)
        state = layers * 2 * kind.state * work.rows / (read * split)  # read and written
        kv = kv + joined(moved, layers * 2 * kind.lookup * keys / multiply) + state
        attention = attention + layers * 2 * kind.score * pairs / multiply
    return kv, attention


def _reduce(setup: Setup, tokens: Number) -> Number:
    """Two all-reduces per layer, where a model is split over devices."""
    n, model = setup.gpus, setup.anatomy
    if n == 1:
        return 0.0 * tokens
    sent = 2 * (n - 1) / n * tokens * model.hidden * setup.scheme.rest / 8
    return 2 * len(model.layers) * (REDUCE_US * 1e-6 + sent / (setup.gpu.link * LINK))
