"""SmoothQuant: the same function, easier to round where inputs are rounded."""

import pytest
import torch

from headrace.models.llama import TINY
from headrace.optimize.passes._seams import seams
from headrace.optimize.passes.smoothquant import PASS
from headrace.quant.schemes import scheme_named
from tests.optimize.passes import made

W8A8 = scheme_named("w8a8")


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
