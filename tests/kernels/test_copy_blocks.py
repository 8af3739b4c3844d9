"""Copies of KV blocks by pairs."""

import pytest
import torch

from headrace.kernels.copy_blocks import copy_blocks, copy_blocks_ref


def test_definition_moves_only_the_targets():
    cache = torch.arange(12.0).view(4, 3)
    copy_blocks(cache, torch.tensor([[1, 3], [0, 2]]))
    assert cache.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("shape", [(6, 4, 2, 8), (6, 3, 1, 5), (6, 16, 4, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_kernel_equals_definition(device, shape, dtype):
    from headrace.kernels.gpu.copy_blocks import copy_blocks as kernel

    cache = torch.randint(0, 200, shape, device=device).to(dtype)
    wanted = cache.clone()
    pairs = torch.tensor([[1, 4], [1, 0], [5, 3]], device=device)
    kernel(cache, pairs)
    copy_blocks_ref(wanted, pairs)
    assert torch.equal(cache, wanted)


def test_no_pairs_is_no_work(device):
    from headrace.kernels.gpu.copy_blocks import copy_blocks as kernel

    cache = torch.randn(3, 4, device=device)
    wanted = cache.clone()
    kernel(cache, torch.empty(0, 2, dtype=torch.int64, device=device))
    assert torch.equal(cache, wanted)
