"""A block that is watched computes what it would have, and tells what went into its layers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.nn.step import Whole
from headrace.optimize.inputs import Collector, Inputs
from headrace.optimize.layer import collect, outputs, round_layer
from headrace.optimize.passes.rtn import Rtn
from headrace.optimize.recipe import Assigned
from headrace.optimize.watch import Enough, Rounded, linears, run, watching
from headrace.quant.schemes import known
from tests.optimize.passes import made

NAMES = {"qkv_proj": ["q", "k", "v"], "o_proj": ["o"], "gate_up_proj": ["gate", "up"], "down_proj": ["down"]}


def windows(block: Block) -> list[Tensor]:
    return list(made.hidden(block.self_attn.qkv_proj.inputs).split(24))


@pytest.mark.parametrize("kind", made.CONFIGS)
def test_it_computes_the_same(kind: str):
    block = made.block(made.CONFIGS[kind])
    found = list(outputs(block, Rounded(), windows(block), lambda: None))
    for ours, x in zip(found, windows(block), strict=True):
        torch.testing.assert_close(ours, made.run(block, x), rtol=1e-5, atol=1e-5)
    assert all(layer.packed is None for layer in linears(block))


@pytest.mark.parametrize("kind", made.CONFIGS)
def test_it_says_what_went_in(kind: str):
    block = made.block(made.CONFIGS[kind])
    seen: dict[Linear, list[Tensor]] = {layer: [] for layer in linears(block)}
    hooks = [
        layer.register_forward_pre_hook(lambda own, args: seen[own].append(args[0]))
        for layer in linears(block)
    ]
    for x in windows(block):
        made.run(block, x)
    for hook in hooks:
        hook.remove()
    needs: Any = dict.fromkeys(linears(block), frozenset({"hessian"}))
    found = collect(block, Rounded(), windows(block), made.TOKENS, needs, lambda: None)
    for layer, inputs in found.items():
        rows = torch.cat(seen[layer])
        assert inputs.hessian_KK is not None
        torch.testing.assert_close(inputs.hessian_KK, rows.T @ rows, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(inputs.sample_TK, rows, rtol=1e-5, atol=1e-5)


def test_what_comes_after_the_last_one_watched_is_not_computed():
    block = made.block(made.CONFIGS["llama"])
    block.mlp.gate_up_proj.weight.data.fill_(float("nan"))
    layer = block.self_attn.o_proj
    collector = Collector(layer.inputs, 24, set(), "cpu")
    ticks: list[int] = []
    collect(block, Rounded(), windows(block)[:1], 24, {layer: frozenset()}, lambda: ticks.append(1))
    assert ticks == [1]
    with watching(block, Rounded(), {layer: collector}), pytest.raises(Enough):
        run(block, windows(block)[0], Whole(torch.zeros(24, dtype=torch.int64)))
    assert bool(collector.finished().square_K.isfinite().all())


@pytest.mark.parametrize(
    "schemes",
    [
        {name: "w8a8" for names in NAMES.values() for name in names},
        {"q": "fp8", "k": "w8a16", "down": "w8a8", "o": "w4a16_row"},
        {"gate": "w8a8_static", "up": "w8a8_static", "v": "w8a8"},
    ],
)
def test_rounded_layers_compute_what_they_will_when_they_are_packed(schemes: dict[str, str]):
    config = {**made.CONFIGS["llama"]}
    block, twin = made.block(config), made.block(config)
    plan = {
        name: Assigned(known().get(schemes.get(name, "")), Rtn(), "")
        for names in NAMES.values()
        for name in names
    }
    rounded, needs = Rounded(), dict.fromkeys(linears(block), frozenset())
    inputs: dict[Linear, Inputs] = collect(block, rounded, windows(block), made.TOKENS, needs, lambda: None)
    modules = dict(twin.named_modules())
    for path, layer in block.named_modules():
        if not isinstance(layer, Linear):
            continue
        names = NAMES[path.rpartition(".")[2]]
        before = layer.weight.data.clone()
        done, rounded.parts[layer] = round_layer(layer, plan, names, inputs[layer], torch.float32)
        assert {one.name for one in done.layers} == {name for name in names if name in schemes}
        assert all(0 < one.error < 0.3 for one in done.layers)
        if done.packed:
            from headrace.quant.plain import PLAIN

            parts, start = [], 0
            for name, rows in zip(names, layer.outputs, strict=True):
                parts.append(done.packed.get(name, (PLAIN, {"weight": before[start : start + rows]})))
                start += rows
            modules[path].become(parts)
    for ours, x in zip(outputs(block, rounded, windows(block), lambda: None), windows(block), strict=True):
        torch.testing.assert_close(ours, made.run(twin, x), rtol=1e-3, atol=1e-3)
