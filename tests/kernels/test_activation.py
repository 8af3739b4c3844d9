"""Gated activations: the halves' order, and that the kernel equals the definition."""

import pytest
import torch
from torch.nn import functional

from headrace.kernels.activation import gelu_mul, gelu_mul_ref, silu_mul, silu_mul_ref
from tests.kernels.closeness import assert_close

# exp(-x) of a very negative gate is infinite and its sigmoid 0, as it should be; only the interpreter tells.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def test_gate_comes_first():
    gate, up = torch.randn(2, 5), torch.randn(2, 5)
    fused = torch.cat([gate, up], dim=-1)
    assert torch.equal(silu_mul(fused), functional.silu(gate) * up)
    assert torch.equal(gelu_mul(fused), functional.gelu(gate, approximate="tanh") * up)


@pytest.mark.parametrize("shape", [(1, 6), (3, 2050), (17, 64), (2, 3, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "definition"), [("silu", silu_mul_ref), ("gelu", gelu_mul_ref)])
def test_kernel_equals_definition(device, shape, dtype, kind, definition):
    from headrace.kernels.gpu.activation import gated

    x = (4 * torch.randn(shape, device=device)).to(dtype)
    assert_close(gated(x, kind), definition(x.float()))


def test_kernel_takes_strided_rows(device):
    from headrace.kernels.gpu.activation import gated

    wide = torch.randn(4, 40, device=device)
    assert_close(gated(wide[:, 4:24], "silu"), silu_mul_ref(wide[:, 4:24]))
