"""Choosing inside a layer: how products are gone through, and that what is timed is the layer."""

import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, cycle
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from headrace.bench import (
    kernels_attention,
    kernels_eight,
    kernels_layer,
    kernels_linear,
    kernels_rows,
    kernels_tune,
    replay,
)
from headrace.bench.kernels_case import Sizes, Way, draw, error
from headrace.bench.kernels_layer import MARGIN, ORDER, Block, Candidate, Memory, Timer, Use, descend, versus
from headrace.kernels import configs, table
from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Gemv, Gemv8, PagedFew, Ring, Skinny, Wide
from tests.simulated_cuda import gpu as gpu
from tests.simulated_cuda import interpreted as interpreted
from tests.simulated_gpu import Gpu

CPU = torch.device("cpu")
TINY = Sizes("tiny", 32, 48, 4, 2, 16, 90, qk_norm=True)
A, B, C = (Gemv(rows, 64, 4) for rows in (1, 2, 4))
FIRST = dict.fromkeys(("qkv", "o", "gate_up", "down"), A)


# -- the descent


class Layers:
    """Layers that take what `us` says of the configurations by name."""

    def __init__(self, us):
        self.us = us
        self.tried: list[Use] = []

    def record(self, use: Use) -> Timer:
        self.tried.append(dict(use))
        return lambda count: self.us(use)


def additive(costs):
    """Every product takes its own time, 10 where nothing is said, beside 60 for the rest."""
    return Layers(lambda use: 60 + sum(costs.get((name, config), 10.0) for name, config in use.items()))


def test_each_product_gets_its_fastest_in_the_order_of_what_there_is_to_gain():
    layers, said = additive({("down", B): 8.0, ("down", C): 7.0, ("o", C): 9.0, ("qkv", B): 11.0}), []
    found = descend(FIRST, {name: [A, C, B] for name in FIRST}, layers.record, said.append)
    assert found == FIRST | {"o": C, "down": C}
    assert [line.split()[0] for line in said] == [name for name in ORDER for _ in "12"]
    assert said[0].startswith(f"gate_up {configs.brief(C)}: 100.00 us a layer, as it is 100.00")
    assert FIRST not in layers.tried[1:], "what stands is recorded once"


def test_a_product_is_chosen_again_after_others_have_changed():
    layers = Layers(lambda use: 100.0 - 5 * (use["o"] == B) - 9 * (use["o"] == B and use["gate_up"] == B))
    found = descend(FIRST, {"o": [B], "gate_up": [B]}, layers.record, str)
    assert found == FIRST | {"o": B, "gate_up": B}


@pytest.mark.parametrize(("saved", "wanted"), [(0.5 * MARGIN, A), (2 * MARGIN, B), (-MARGIN, A)])
def test_another_must_save_a_part_of_the_layer(saved: float, wanted: Gemv):
    layers = Layers(lambda use: 100.0 * (1 - saved * (use["down"] == B)))
    assert descend(FIRST, {"down": [B]}, layers.record, str)["down"] == wanted


def test_the_library_may_win_and_products_without_candidates_stay():
    layers = additive({("qkv", None): 5.0})
    assert descend(FIRST, {"qkv": [None, B]}, layers.record, str) == FIRST | {"qkv": None}


def test_two_layers_are_timed_by_turns_while_the_clock_drifts():
    clock, turns = iter(range(1, 1000)), []

    def timer(name: str, us: float) -> Timer:
        def timed(count: int) -> float:
            turns.append(name)
            return us * next(clock) ** 2

        return timed

    before, after = versus(timer("base", 10.0), timer("other", 5.0))
    assert turns == ["base", "other"] * kernels_layer.ROUNDS
    assert (before, after) == (10.0 * 7**2, 5.0 * 8**2)


# -- the layer


@pytest.fixture
def tiny(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 everywhere: Triton's interpreter multiplies bfloat16 matrices wrongly. Rows of few keys; a ring that is
    its definition, as Gluon has no interpreter."""
    torch.manual_seed(0)
    modules = kernels_layer, kernels_linear, kernels_eight, kernels_attention, kernels_rows
    for module in modules:
        monkeypatch.setattr(module, "draw", partial(draw, dtype=torch.float16))
    monkeypatch.setattr(kernels_layer, "Way", lambda: Way(kv=torch.float16))
    monkeypatch.setattr(kernels_layer, "KEYS", 20)
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 4)

    def ring(x, weight, config, bias, dtype, pdl, gated):
        out = functional.linear(x.float(), weight.float())
        return (silu_mul_ref(out) if gated else out).to(dtype)

    monkeypatch.setitem(sys.modules, "headrace.kernels.gpu.ring", SimpleNamespace(ring=ring))


def defined(memory: Memory, copy: int) -> torch.Tensor:
    """Memory.launch in float32, from norm to norm as it is rounded."""

    def product(name, x, around):
        weight = memory.weights[name][copy]
        plain = weight if isinstance(weight, torch.Tensor) else weight.weight.float() * weight.scale.float()
        return kernels_linear.definition(x, plain, around)

    around = memory.around
    _, total = product("qkv", memory.x["qkv"], around["qkv"])
    out, _ = product("o", memory.x["o"], around["o"])
    out, _ = product("gate_up", out.half(), replace(around["gate_up"], before=total))
    return product("down", out, around["down"])[0]


USES = [
    (Block(TINY, 1), [Gemv(2, 32, 4), Gemv(1, 64, 4), Gemv(1, 32, 4), Gemv(4, 64, 4)], 2e-3),
    (
        Block(TINY, 3),
        [Skinny(16, 16, 2, 4, 2), None, Skinny(32, 16, 1, 4, 2), Wide(64, 64, 16, 4, 2)],
        2e-3,
    ),
    (Block(TINY, 3), [Ring(128, 16, 1), Ring(128, 16, 2), Ring(256, 16, 1), None], 2e-3),
    (Block(TINY, 1, True), [Gemv8(4, split, 1) for split in (1, 2, 1, 1)], 6e-2),
]
"""Blocks, configurations of their products, and the error that rounding makes."""


@pytest.mark.parametrize(("block", "chosen", "bound"), USES, ids=["one", "few", "rings", "eight"])
def test_a_layer_is_its_products_around_attention(tiny: None, block: Block, chosen, bound: float):
    use = dict(zip(block.layers, chosen, strict=True))
    memory = Memory(block, 2, CPU)
    assert len(memory.attend) == len(memory.weights["down"]) == 2
    order, multiply, attend = [], memory.multiply, memory.attend

    def product(x, weight, config, around):
        order.extend(
            (name, at) for name, both in memory.weights.items() for at in (0, 1) if both[at] is weight
        )
        return multiply(x, weight, config, around)

    memory.multiply = product
    memory.attend = [lambda at=at: (order.append(("attention", at)), attend[at]()) for at in (0, 1)]
    outs = [memory.launch(use, copy) for copy in (0, 1)]
    assert order == [(name, at) for at in (0, 1) for name in ("qkv", "attention", "o", "gate_up", "down")]
    for copy, out in enumerate(outs):
        assert error(out, defined(memory, copy)) <= bound
    assert error(outs[0], outs[1]) > 0.1, "copies are different weights"
    for name, config in use.items():
        out, total = Candidate(block, name, config).make(1, CPU).calls[0]()
        assert (out.shape, total.shape) == (
            (block.tokens, block.layers[name].n), (block.tokens, block.layers[name].k)
        )  # fmt: skip


def test_few_rows_have_the_attention_that_the_tables_choose(tiny: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(configs, "paged_few", lambda cap, size, rows: PagedFew(16, 2, 1, 16))
    one = Memory(Block(TINY, 2), 1, CPU).attend[0]
    assert isinstance(one, partial)
    assert one.func.__qualname__.startswith("few.")
    one()


def test_what_is_used_so_far_is_what_the_tables_say():
    shape, cap = Sizes.of("llama-3.1-8b"), (9, 0)
    n, k = 4096, 14336
    assert Block(shape, 1).used(cap)["down"] == configs.gemv(cap, n, k)
    assert Block(shape, 1, True).used(cap)["down"] == configs.gemv8(cap, n, k)
    for tokens in (16, 64):
        assert Block(shape, tokens).used(cap)["gate_up"] == configs.skinny(cap, tokens, k, n, True)
    assert list(Block(shape, 1).used(cap)) == ["qkv", "o", "gate_up", "down"]


# -- a device


def test_layers_are_recorded_and_replayed_on_a_device(gpu: Gpu, tiny: None, monkeypatch: pytest.MonkeyPatch):
    """A simulated one, whose clock says that of two layers the second takes half as long."""
    times, sizes, said = chain([1.0], cycle([1.0, 0.5])), [], []

    @contextmanager
    def capture(graph, stream):
        graph.capture_begin(None, "")
        yield
        graph.capture_end()

    def elapsed(graph, count: int) -> float:
        graph.replay()
        torch.cuda.synchronize()
        return next(times) * count * replay.LAUNCHES[0] * 1e-3

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(kernels_layer, "elapsed_ms", elapsed)
    monkeypatch.setattr(kernels_layer, "copies_of", lambda size: sizes.append(size) or 2)
    monkeypatch.setattr(replay, "LAUNCHES", (2, 2))
    monkeypatch.setattr(kernels_layer, "ROUNDS", 1)
    block, split = Block(TINY, 3), Skinny(16, 16, 2, 4, 2)
    with torch.inference_mode():
        found = kernels_layer.tune(block, {"down": [split]}, said.append)
    assert found == {**block.used(configs.capability(torch.device("cuda", 0))), "down": split}
    assert sizes == [2 * 32 * (128 + 64 + 2 * 48 + 48)]
    assert said == [
        f"tiny linear 3 down {configs.brief(split)}: 0.50 us a layer, as it is 1.00",
        "tiny linear 3: 0.50 us a layer, 1.00 before",
    ]


@pytest.mark.gpu
def test_tuning_a_small_model_on_the_device(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name in ("gemvs", "fews"):
        of = getattr(kernels_tune, name)
        monkeypatch.setattr(kernels_tune, name, lambda *args, of=of: list(of(*args))[:3])
    monkeypatch.setattr(kernels_tune, "SKINNY_TOKENS", (16,))
    monkeypatch.setattr(kernels_tune, "MIDDLE_TOKENS", ())
    said: list[str] = []
    path = kernels_tune.tune(("linear",), ("smollm2-135m",), tmp_path / "t.json", said.append)
    made = configs._table(table.read(path))
    layers = {(layer.n, layer.k, layer.gated) for layer in Sizes.of("smollm2-135m").layers}
    assert set(made.gemv) == layers
    assert set(made.skinny) == {(16, *layer) for layer in layers}
    assert [line.split(":")[0] for line in said if line.endswith("before")] == [
        "smollm2-135m linear 1", "smollm2-135m linear 16",
    ]  # fmt: skip
