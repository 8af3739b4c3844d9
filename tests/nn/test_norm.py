"""RMSNorm as a layer."""

import torch

from headrace.nn.norm import RMSNorm


def test_alone_and_with_the_residual():
    layer = RMSNorm(8, 1e-5, offset=1.0)
    layer.weight.data.normal_()
    x, residual = torch.randn(2, 3, 8)
    total = x + residual
    normed = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + layer.weight)
    found = layer.add(x, residual)
    torch.testing.assert_close(found, (normed, total))
    torch.testing.assert_close(layer(total), normed)


def test_before_the_first_layer_there_is_no_residual():
    layer = RMSNorm(8, 1e-5)
    layer.weight.data.fill_(2.0)
    x = torch.randn(3, 8)
    normed, residual = layer.add(x, None)
    assert residual is x
    torch.testing.assert_close(normed, layer(x))
    torch.testing.assert_close(normed.square().mean(-1), torch.full((3,), 4.0), atol=1e-3, rtol=0)
