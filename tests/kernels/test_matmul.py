"""Linear layers: that every kernel and every fusion equals its definition in float32."""

import itertools

import pytest
import torch
from torch.nn import functional

from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Gemv, Skinny
from headrace.kernels.matmul import linear, linear_silu_mul, norm_linear
from headrace.kernels.norm import rms_norm
from tests.kernels.closeness import assert_close

# Triton's interpreter multiplies bfloat16 matrices wrongly, so tiles are tried in float16.
GEMV_CONFIGS = [Gemv(2, 64, 4), Gemv(4, 32, 4)]
SKINNY_CONFIGS = [Skinny(16, 32, 1, 4, 3), Skinny(16, 16, 4, 4, 3), Skinny(32, 16, 2, 4, 3)]
FUSIONS = list(itertools.product([False, True], repeat=4))  # gated, norm, before, bias
SOME = [FUSIONS[i] for i in (0, 1, 4, 6, 8, 9, 12, 15)]


def case(tokens, n, k, dtype, flags, device):
    """x, weight, fusion and what the definition makes of them in float32."""
    from headrace.bench.kernels_linear import definition
    from headrace.kernels.gpu.matmul import Fusion

    gated, norm, before, bias = flags
    rows = 2 * n if gated else n

    def draw(*shape):
        return torch.randn(shape, device=device).to(dtype)

    x, weight = draw(tokens, k), (torch.randn(rows, k, device=device) / k**0.5).to(dtype)
    fusion = Fusion(
        draw(rows) if bias else None, draw(k) if norm else None, 1e-5, 0.5,
        draw(tokens, k) if before and norm else None, gated,
    )  # fmt: skip
    return x, weight, fusion, *definition(x, weight, fusion)


@pytest.mark.parametrize("config", GEMV_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gemv_with_every_fusion(device, config, dtype):
    from headrace.kernels.gpu.matmul import gemv

    every = FUSIONS if config is GEMV_CONFIGS[0] and dtype == torch.float32 else SOME
    for (n, k), flags in [((7, 40), f) for f in every] + [((8, 64), f) for f in SOME]:
        x, weight, fusion, wanted, total = case(1, n, k, dtype, flags, device)
        out, kept = gemv(x, weight, config, fusion)
        assert_close(out, wanted)
        assert_close(kept, total)


@pytest.mark.parametrize("config", SKINNY_CONFIGS)
@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 7, 40), (5, 19, 72), (33, 20, 128)])
def test_tiles_with_every_fusion(device, config, tokens, n, k):
    from headrace.kernels.gpu.matmul import skinny

    for flags in SOME:
        if flags[1]:
            continue  # a norm is a launch of its own
        x, weight, fusion, wanted, _ = case(tokens, n, k, torch.float16, flags, device)
        assert_close(skinny(x, weight, config, fusion, block_m=16), wanted)


def test_split_counters_return_to_zero(device):
    from headrace.kernels.gpu.matmul import skinny, split_counters

    x, weight, _, wanted, _ = case(3, 40, 96, torch.float16, (False,) * 4, device)
    for _ in range(2):
        assert_close(skinny(x, weight, SKINNY_CONFIGS[1]), wanted)
        assert not split_counters(device).any()


@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("deterministic", [False, True])
def test_product_chooses_and_composes(device, tokens, deterministic):
    from headrace.kernels.gpu.matmul import product

    flags = (True, True, True, True)
    x, weight, fusion, wanted, total = case(tokens, 16, 32, torch.float16, flags, device)
    out, kept = product(x, weight, fusion, torch.float32, deterministic)
    assert out.dtype == torch.float32
    assert_close(out, wanted, 2e-3)
    assert_close(kept, total)


@pytest.mark.usefixtures("even_sums")
def test_deterministic_rows_stand_alone(device):
    from headrace.kernels.gpu.matmul import Fusion, product

    x, weight, _, _, _ = case(70, 24, 96, torch.float16, (False,) * 4, device)
    gain = torch.ones(96, device=device, dtype=torch.float16)
    for fusion in (Fusion(), Fusion(gain=gain, eps=1e-6)):
        together, _ = product(x, weight, fusion, deterministic=True)
        for tokens in (1, 17):
            assert torch.equal(product(x[:tokens], weight, fusion, deterministic=True)[0], together[:tokens])


def test_public_functions_are_their_compositions():
    x, weight = torch.randn(3, 8), torch.randn(6, 8)
    gain, bias = torch.randn(8), torch.randn(6)
    assert torch.equal(linear(x, weight, bias), functional.linear(x, weight, bias))
    assert linear(x, weight, out_dtype=torch.float64).dtype == torch.float64
    assert torch.equal(linear_silu_mul(x, weight), silu_mul_ref(functional.linear(x, weight)))
    out, total = norm_linear(x, x, gain, 1e-6, 0.0, weight, bias)
    assert torch.equal(total, x + x)
    assert torch.equal(out, functional.linear(rms_norm(total, gain, 1e-6), weight, bias))
    out, total = norm_linear(x, None, gain, 1e-6, 0.0, weight, gated=True)
    assert total is x
    assert torch.equal(out, silu_mul_ref(functional.linear(rms_norm(x, gain, 1e-6), weight)))
