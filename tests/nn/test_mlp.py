"""The gated feed-forward block."""

import pytest
import torch
import torch.nn.functional as F

from headrace.base.errors import BadCheckpoint
from headrace.nn.mlp import MLP
from headrace.nn.norm import RMSNorm
from headrace.quant.schemes import known

ACTS = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_down_of_gate_times_up(act: str, bias: bool):
    layer = MLP(6, 10, act, bias)
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randn(4, 6)
    gate, up = layer.gate_up_proj(x).split(10, dim=-1)
    torch.testing.assert_close(layer(x), layer.down_proj(ACTS[act](gate) * up))
    assert (layer.down_proj.bias is not None) == bias


def test_an_unknown_activation_lists_the_known():
    with pytest.raises(BadCheckpoint, match="'relu'; expected one of silu"):
        MLP(6, 10, "relu")


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", ["fp8", "fp8_block", "w8a8", "w8a16"])
def test_quantized_it_leaves_norm_and_gate_to_the_scheme_on_a_gpu(name: str, tokens: int, monkeypatch):
    layer, norm, scheme = MLP(64, 128, "silu", True), RMSNorm(64, 1e-5), known()[name]
    for module in (layer, norm):
        for parameter in module.parameters():
            parameter.data.normal_()
    for each in (layer.gate_up_proj, layer.down_proj):
        each.become([(scheme, scheme.pack(w)) for w in each.weight.data.split(each.outputs)], prepare=True)
    x, residual = torch.randn(2, tokens, 64)
    wanted, total = layer.normed(norm, x, residual)
    monkeypatch.setattr("headrace.nn.linear.on_gpu", lambda *tensors: True)
    out, kept = layer.normed(norm, x, residual)
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    assert torch.equal(kept, total)
