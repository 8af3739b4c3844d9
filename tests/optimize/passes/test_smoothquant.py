"""SmoothQuant: the same function, easier to round where inputs are rounded."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from headrace.base.errors import Refused
from headrace.models.llama import TINY
from headrace.optimize.passes._seams import seams
from headrace.optimize.passes.smoothquant import PASS, SmoothQuant
from headrace.quant.schemes import scheme_named
from tests.optimize.passes import made

W8A8 = scheme_named("w8a8")


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("config", made.CONFIGS.values(), ids=made.CONFIGS)
def test_a_block_computes_what_it_did(config: dict[str, Any], inner: bool):
    block, x = made.block(config), made.hidden(config["hidden_size"])
    before = made.run(block, x)
    weights = [p.clone() for p in block.parameters()]
    PASS(inner=inner).change(block, made.seen(block, x), lambda layer: W8A8)
    assert not all(torch.equal(a, b) for a, b in zip(weights, block.parameters(), strict=True))
    assert (made.run(block, x) - before).norm() < 1e-4 * before.norm()


def test_scales_are_those_of_the_paper():
    block = made.block(TINY)
    x = made.hidden(TINY["hidden_size"])
    inputs = made.seen(block, x)
    seam = next(seams(block))
    peak, weight = inputs[seam.layer].peak_K, seam.layer.weight.data.abs().amax(0)
    torch.testing.assert_close(PASS(alpha=0.7).scale(seam, peak), peak**0.7 / weight**0.3)


def test_heads_of_a_group_share_a_scale():
    """Columns of o_proj that read one channel of v get the scale that the largest of their inputs asks for."""
    block = made.block(TINY)
    seam = list(seams(block))[1]
    group, size = TINY["num_attention_heads"] // TINY["num_key_value_heads"], TINY["head_dim"]
    peak = torch.arange(1.0, seam.layer.inputs + 1)
    scale = PASS(alpha=1.0).scale(seam, peak)
    heads = peak.view(-1, group, size)
    torch.testing.assert_close(scale, heads.amax(1).flatten())
    torch.testing.assert_close(seam.columns(scale), heads.amax(1, keepdim=True).expand_as(heads).flatten())


@pytest.mark.parametrize("name", ["w8a8", "fp8"])
def test_rounding_loses_less(name: str):
    """Measured where peaks of inputs are moved: after them the 8 bits of other channels say more."""
    scheme = scheme_named(name)
    plain, smooth = made.block(TINY), made.block(TINY)
    for block in (plain, smooth):
        block.input_layernorm.weight.data[3] = 60.0  # a channel of every token stands out
        block.post_attention_layernorm.weight.data[5] = 60.0
        block.self_attn.qkv_proj.weight.data[:, 3] *= 0.02
        block.mlp.gate_up_proj.weight.data[:, 5] *= 0.02
    x = torch.randn(made.TOKENS, TINY["hidden_size"], generator=torch.Generator().manual_seed(1))
    wanted = made.run(plain, x)
    PASS().change(smooth, made.seen(smooth, x), lambda layer: scheme)
    lost = []
    for block in (plain, smooth):
        made.rounded(block, scheme)
        lost.append(float((made.run(block, x) - wanted).norm()))
    assert lost[1] < (0.6 if name == "w8a8" else 1.02) * lost[0]  # floats hardly mind what stands out


@pytest.mark.parametrize("scheme", [None, scheme_named("w4a16_g32")])
def test_layers_whose_inputs_stay_are_left_alone(scheme: Any):
    block, x = made.block(TINY), made.hidden(TINY["hidden_size"])
    weights = [p.clone() for p in block.parameters()]
    PASS(inner=True).change(block, made.seen(block, x), lambda layer: scheme)
    assert all(torch.equal(a, b) for a, b in zip(weights, block.parameters(), strict=True))


def test_it_says_what_it_is_for():
    assert "does not round inputs" in str(PASS().fits(scheme_named("w4a16")))
    assert PASS().fits(W8A8) is None


def test_a_channel_without_inputs_changes_nothing_much():
    block, x = made.block(TINY), made.hidden(TINY["hidden_size"])
    block.input_layernorm.weight.data[7] = 0
    before = made.run(block, x)
    PASS(inner=True).change(block, made.seen(block, x), lambda layer: W8A8)
    assert all(p.isfinite().all() for p in block.parameters())
    assert (made.run(block, x) - before).norm() < 1e-4 * before.norm()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_checked(alpha: float):
    with pytest.raises(Refused, match="expected 0 to 1") as caught:
        SmoothQuant(alpha=alpha)
    assert caught.value.param == "smoothquant.alpha"


def test_options_are_frozen():
    with pytest.raises(AttributeError):
        PASS().alpha = 1.0  # type: ignore[misc]
    assert replace(PASS(), alpha=0.25).alpha == 0.25
