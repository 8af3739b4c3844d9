"""One linear layer, alone and fused."""

import pytest
import torch

from headrace.nn.linear import Linear


@pytest.mark.parametrize("bias", [False, True])
def test_fused_projections_lie_side_by_side(bias: bool):
    layer = Linear(5, (3, 2, 4), bias, fused=("a", "b", "c"), split="out")
    parts = [(torch.randn(n, 5), torch.randn(n)) for n in layer.outputs]
    layer.weight.data.copy_(torch.cat([w for w, _ in parts]))
    if layer.bias is not None:
        layer.bias.data.copy_(torch.cat([b for _, b in parts]))
    x = torch.randn(7, 5)
    for y, (w, b) in zip(layer(x).split(layer.outputs, dim=-1), parts, strict=True):
        torch.testing.assert_close(y, x @ w.T + b * bias)


def test_alone():
    layer = Linear(5, 3)
    assert (layer.outputs, layer.fused, layer.split, layer.bias) == ((3,), (), None, None)
    assert layer.weight.shape == (3, 5)
    assert not layer.weight.requires_grad


def test_each_fused_name_has_a_size():
    with pytest.raises(AssertionError, match="one size per fused name"):
        Linear(5, (3, 2), fused=("a",))
