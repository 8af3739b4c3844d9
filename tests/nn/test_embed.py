"""Token embedding."""

import torch

from headrace.nn.embed import Embedding


def test_rows_by_id_scaled():
    for scale in (1.0, 3.5):
        layer = Embedding(6, 4, scale)
        layer.weight.data.normal_()
        ids = torch.tensor([5, 0, 5])
        torch.testing.assert_close(layer(ids), layer.weight[ids] * scale)


def test_the_scale_is_rounded_before_it_multiplies():
    layer = Embedding(1, 1, 55.4256).to(torch.bfloat16)
    layer.weight.data.fill_(9.0)
    assert layer(torch.tensor([0])).item() == 500.0  # 9 * 55.5 = 499.5; 9 * 55.4256 = 498.8 would become 498
