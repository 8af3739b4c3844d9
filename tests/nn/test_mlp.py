"""The gated feed-forward block."""

import pytest
import torch
import torch.nn.functional as F

from headrace.base.errors import BadCheckpoint
from headrace.nn.mlp import MLP

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
