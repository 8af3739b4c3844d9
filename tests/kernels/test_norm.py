"""RMS norm: what it means, and that the kernel equals the definition."""

import pytest
import torch

from headrace.kernels.norm import add_rms_norm, rms_norm, rms_norm_ref
from tests.kernels.closeness import assert_close

SHAPES = [(1, 40), (3, 64), (2, 5, 33), (7, 1025)]
TYPES = [torch.float32, torch.bfloat16]


def test_definition_by_hand():
    x = torch.tensor([[3.0, 4.0]])
    assert_close(rms_norm(x, torch.tensor([1.0, 2.0]), 0.0), torch.tensor([[3.0, 8.0]]) / 12.5**0.5)
    shifted = rms_norm(x, torch.tensor([0.0, 1.0]), 0.0, offset=1.0)
    assert_close(shifted, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_add_keeps_the_inputs_and_returns_the_sum():
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    before = residual.clone()
    normed, total = add_rms_norm(x, residual, torch.ones(8), 1e-6)
    assert torch.equal(residual, before)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, torch.ones(8), 1e-6))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("add", [False, True])
def test_kernel_equals_definition(device, shape, dtype, add):
    from headrace.kernels.gpu.norm import normalize

    x = torch.randn(shape, device=device).to(dtype)
    residual = torch.randn(shape, device=device).to(dtype) if add else None
    weight = torch.randn(shape[-1], device=device).to(dtype)
    normed, total = normalize(x, residual, weight, 1e-5, 0.5)
    wanted = x.float() if residual is None else x.float() + residual.float()
    assert_close(total, wanted)
    assert_close(normed, rms_norm_ref(wanted, weight, 1e-5, 0.5))


def test_kernel_takes_strided_heads(device):
    from headrace.kernels.gpu.norm import normalize

    fused = torch.randn(5, 6 * 16, device=device)
    heads = fused.view(5, 6, 16)[:, 1:3]
    normed, _ = normalize(heads, None, torch.ones(16, device=device), 1e-6, 0.0)
    assert_close(normed, rms_norm_ref(heads, torch.ones(16, device=device), 1e-6))


def test_a_row_does_not_depend_on_its_neighbours(device):
    from headrace.kernels.gpu.norm import normalize

    x, weight = torch.randn(9, 128, device=device), torch.randn(128, device=device)
    together = normalize(x, None, weight, 1e-6, 0.0)[0]
    for i in range(9):
        assert torch.equal(together[i : i + 1], normalize(x[i : i + 1], None, weight, 1e-6, 0.0)[0])
