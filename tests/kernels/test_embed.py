"""Token embedding."""

import pytest
import torch

from headrace.kernels.embed import embed, embed_ref


def test_scale_multiplies_rows():
    table = torch.randn(5, 4)
    assert torch.equal(embed(torch.tensor([3, 3, 0]), table, 2.0), 2 * table[[3, 3, 0]])


@pytest.mark.parametrize("size", [8, 33, 1100])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_kernel_equals_definition(device, size, kind):
    from headrace.kernels.gpu.embed import gather

    table = torch.randn(7, size, device=device)
    ids = torch.tensor([6, 0, 3, 3], device=device, dtype=kind)
    assert torch.equal(gather(ids, table, 1.5), embed_ref(ids, table, 1.5))
