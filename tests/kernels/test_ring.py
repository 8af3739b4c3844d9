"""Products by a ring: both kinds of weights, tiles whole and cut, gate and up together, equal to their definition."""

import pytest
import torch
from torch.nn import functional

from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Ring
from headrace.kernels.rounding import DTYPES, LARGEST, rounded
from tests.kernels.closeness import assert_close
from tests.kernels.simulated_gluon import ring as ring

TYPES = [torch.bfloat16, torch.float16, *DTYPES.values()]
SHAPES = [(200, 208), (64, 32), (2056, 1040), (1024, 3072)]
CASES = [
    (16, Ring(128, 16, 1), False),
    (17, Ring(128, 32, 8), False),
    (50, Ring(128, 64, 4), False),
    (2, Ring(256, 16, 8), False),
    (2, Ring(256, 16, 8), True),
    (33, Ring(256, 32, 64), True),
    (64, Ring(256, 64, 2), True),
    (100, Ring(256, 128, 2), False),
]


def case(tokens, rows, k, dtype, device):
    """Inputs, weight, scales of 8 bits, and their product in float32."""
    x, weight = torch.randn(tokens, k, device=device), torch.randn(rows, k, device=device) / k**0.5
    if dtype.itemsize == 2:
        x, weight = x.to(dtype), weight.to(dtype)
        return x, weight, None, functional.linear(x.float(), weight.float())
    kind = next(kind for kind, found in DTYPES.items() if found == dtype)
    (x, x_scale), (weight, scale) = (rounded(each, LARGEST[kind], dtype) for each in (x, weight))
    wanted = functional.linear(x.float() * x_scale, weight.float() * scale)
    return x, weight, (x_scale.flatten(), scale), wanted


@pytest.mark.parametrize(("rows", "k"), SHAPES)
@pytest.mark.parametrize(("tokens", "config", "gated"), CASES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_products_equal_their_definition(device, ring, dtype, tokens, config, gated, rows, k):
    from headrace.kernels.gpu.product import split_counters

    x, weight, scales, wanted = case(tokens, rows, k, dtype, device)
    bias = torch.randn(rows, device=device).bfloat16()
    wanted = silu_mul_ref(wanted + bias.float()) if gated else wanted + bias.float()
    out = ring(x, weight, config, bias, torch.float32, True, gated, scales)
    assert_close(out, wanted, 2e-3)
    assert not split_counters(x.device).any()
    again = ring(x, weight, config, bias, torch.float32, True, gated, scales)
    assert torch.equal(again, out), "sums depend on who comes last"


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_inputs_may_lie_apart_and_outputs_are_rounded_as_the_composition_has_it(device, ring, dtype, gated):
    x, weight, _, wanted = case(30, 264, 328, dtype, device)
    apart = torch.cat([x, x], 1)[:, :328]
    out = ring(apart, weight, Ring(256, 32, 4), None, dtype, False, gated)
    wanted = wanted.to(dtype)
    assert out.dtype == dtype
    assert_close(out, silu_mul_ref(wanted) if gated else wanted, 2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tokens", [2, 16, 31, 33, 64])
@pytest.mark.parametrize(
    ("rows", "k", "gated"),
    [
        (6144, 4096, False),
        (4096, 4096, False),
        (28672, 4096, True),
        (4096, 14336, False),
        (128256, 4096, False),
    ],
)
def test_layers_of_real_size(ring, tokens, rows, k, gated):
    wide = next(most for most in (16, 32, 64) if tokens <= most)
    x, weight, _, wanted = case(tokens, rows, k, torch.bfloat16, "cuda")
    for height in (256,) if gated else (128, 256):
        for parts in (1, 4):
            out = ring(x, weight, Ring(height, wide, parts), None, torch.float32, True, gated)
            assert_close(out, silu_mul_ref(wanted) if gated else wanted, 2e-3)
