"""Products of many tokens: gate and up together or not, equal to their definition in float32."""

import pytest
import torch
from torch.nn import functional

from headrace.kernels import configs
from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Ring, Wide
from tests.kernels.closeness import assert_close
from tests.kernels.simulated_gluon import ring as ring


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("tokens", "n", "k", "programs"), [(33, 40, 64, 3), (40, 70, 136, 5), (16, 48, 256, 4), (50, 33, 128, 7)]
)
def test_tiles_equal_definition(device, tokens, n, k, programs, gated):
    from headrace.kernels.gpu.product import Fusion, multiply

    rows = 2 * n if gated else n
    x, bias = torch.randn(tokens, k, device=device).half(), torch.randn(rows, device=device).half()
    weight = (torch.randn(rows, k, device=device) / k**0.5).half()
    wanted = functional.linear(x.float(), weight.float(), bias.float())
    wanted = silu_mul_ref(wanted) if gated else wanted
    config, fusion = Wide(16, 32, 16, 4, 2), Fusion(bias, gated=gated)
    out = multiply(x, weight, config, fusion, torch.float32, programs=programs)
    assert out.dtype == torch.float32
    assert_close(out, wanted, 2e-3)
    assert torch.equal(out, multiply(x, weight, config, fusion, torch.float32, programs=programs))
    assert_close(multiply(x, weight, config, fusion, programs=programs), wanted, 2e-3)


def test_only_what_tma_can_read_fits(device):
    from headrace.kernels.gpu.product import fits

    x, weight = torch.zeros(4, 72, device=device).half(), torch.zeros(8, 64, device=device).half()
    assert fits(x[:, :64], weight)
    assert not fits(x[:, 1:65], weight)
    assert not fits(torch.zeros(4, 68, device=device).half()[:, :64], weight)
    assert not fits(x[:, :60].contiguous(), torch.zeros(8, 60, device=device).half())


def row(tokens, n, k, gated, config):
    return {"tokens": tokens, "n": n, "k": k, "gated": gated, "use": configs.brief(config)}


def test_product_takes_the_tables_tile(device, monkeypatch, measure):
    from headrace.kernels.gpu import matmul

    x, weight = torch.randn(70, 64, device=device).half(), torch.randn(32, 64, device=device).half() / 8
    cap = configs.capability(device)
    taken = []
    monkeypatch.setattr(matmul, "multiply", lambda *given: taken.append(given[2]) or given[0])
    measure(cap, middle=[row(96, 32, 64, False, Wide(16, 32, 16, 4, 2))])
    matmul.product(x, weight)
    assert taken == [Wide(16, 32, 16, 4, 2)]
    matmul.product(torch.cat([x, x]), weight)  # more tokens than any row of the table
    matmul.product(x, weight, deterministic=True)
    assert len(taken) == 1


def test_product_takes_the_tables_ring_where_tma_can_read(device, monkeypatch, measure, ring):
    from headrace.bench.kernels_linear import definition
    from headrace.kernels.gpu import matmul
    from headrace.kernels.gpu.matmul import Fusion

    x, weight = torch.randn(5, 64, device=device).half(), torch.randn(32, 64, device=device).half() / 8
    gain, bias = torch.ones(64, device=device).half(), torch.randn(32, device=device).half()
    cap, config, taken = configs.capability(device), Ring(256, 16, 4), []

    def noted(*given):
        taken.append((given[2], given[6]))
        return ring(*given)

    monkeypatch.setattr("headrace.kernels.gpu.ring.ring", noted)
    monkeypatch.setattr(configs, "rings", lambda cap: True)
    measure(cap, skinny=[row(16, n, 64, gated, config) for n, gated in ((32, False), (16, True))])
    for fusion, dtype in ((Fusion(bias, gain, 1e-6, before=x), None), (Fusion(gated=True), torch.float32)):
        wanted, total = definition(x, weight, fusion)
        out, kept = matmul.product(x, weight, fusion, dtype)
        assert out.dtype == (dtype or x.dtype)
        assert_close(out, wanted, 2e-3)
        assert_close(kept, total)
    assert taken == [(config, False), (config, True)]
    matmul.product(torch.cat([x, x], 1)[:, 1:65], weight)  # rows that begin anywhere
    matmul.product(x, weight, deterministic=True)
    assert len(taken) == 2


def test_smallest_row_that_serves_is_chosen(measure):
    small, large = Wide(64, 128, 64, 4, 4), Wide(128, 256, 64, 8, 4)
    rows = ((128, small), (256, None), (None, large))
    measure((9, 9), middle=[row(most, 8, 16, True, config) for most, config in rows])
    found = [configs.middle((9, 9), tokens, 8, 16, True) for tokens in (65, 128, 129, 257, 8192)]
    assert found == [small, small, None, large, large]
    assert configs.middle((9, 9), 65, 8, 16) is None
    assert configs.middle((7, 5), 65, 8, 16, True) is None


@pytest.mark.gpu
def test_library_gives_unrounded_sums():
    from headrace.kernels.gpu.matmul import Fusion, library

    x, weight = torch.randn(70, 512, device="cuda").bfloat16(), torch.randn(90, 512, device="cuda").bfloat16()
    bias = torch.randn(90, device="cuda").bfloat16()
    out = library(x, weight, Fusion(bias), torch.float32, False)
    assert_close(out, functional.linear(x.float(), weight.float(), bias.float()), 1e-4)
