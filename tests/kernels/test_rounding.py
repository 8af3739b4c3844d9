"""Rounding to 8 bits: kernels give the definition's values and scales, whatever comes before them."""

import pytest
import torch

from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.norm import rms_norm_ref
from headrace.kernels.rounding import LARGEST, norm_round, round_rows, rounded, silu_mul_round

pytestmark = pytest.mark.usefixtures("interpreted")
KINDS = ["fp8", "int8"]
SHAPES = [(1, 40), (3, 128), (5, 300)]


def how(kind, group=0, fixed=None):
    from headrace.kernels.gpu.rounding import Rounding

    return Rounding(kind, group, fixed)


def rows(*shape, device, dtype=torch.float32):
    """Rows of different sizes, one of them zero."""
    x = torch.randn(shape, device=device) * torch.logspace(-3, 3, shape[0], device=device)[:, None]
    x[-1] = 0
    return x.to(dtype)


def same(got, wanted, scale, wanted_scale):
    """Scales are equal; values are, but for a few that lie next to a tie."""
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-6, atol=0)
    got, wanted = got.float(), wanted.float()
    assert (got != wanted).sum() <= max(1, got.numel() // 200)
    assert ((got - wanted).abs() <= (wanted.abs() / 8).clamp(min=1)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows(device, kind, group, shape):
    from headrace.kernels.gpu.rounding import round_plain

    x = rows(*shape, device=device)
    values, scale = round_plain(x, how(kind, group))
    wanted, wanted_scale = round_rows(x.cpu(), kind, group)
    same(values.cpu(), wanted, scale.cpu(), wanted_scale)


@pytest.mark.parametrize("kind", KINDS)
def test_one_scale_for_all_clips(device, kind):
    from headrace.kernels.gpu.rounding import round_plain

    x, fixed = rows(4, 200, device=device), torch.tensor([0.01], device=device)
    values, scale = round_plain(x, how(kind, fixed=fixed))
    wanted, wanted_scale = round_rows(x.cpu(), kind, fixed=fixed.cpu())
    same(values.cpu(), wanted, scale.cpu(), wanted_scale)
    assert values.float().abs().max() == LARGEST[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_after_a_norm(device, kind, residual, shape):
    from headrace.kernels.gpu.rounding import round_normed

    x = rows(*shape, device=device) + 1
    before = torch.randn(shape, device=device) if residual else None
    gain = torch.randn(shape[1], device=device)
    values, scale, total = round_normed(x, before, gain, 1e-5, 1.0, how(kind))
    sums = x if before is None else x + before
    wanted, wanted_scale = round_rows(rms_norm_ref(sums, gain, 1e-5, 1.0).cpu(), kind)
    same(values.cpu(), wanted, scale.cpu(), wanted_scale)
    torch.testing.assert_close(total, sums)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [0, 128])
def test_after_a_gate(device, kind, group):
    from headrace.kernels.gpu.rounding import round_gated

    x = torch.randn(3, 2 * 264, device=device)
    values, scale = round_gated(x, how(kind, group))
    wanted, wanted_scale = round_rows(silu_mul_ref(x).cpu(), kind, group)
    same(values.cpu(), wanted, scale.cpu(), wanted_scale)


@pytest.mark.parametrize("kind", KINDS)
def test_the_definitions_are_compositions(kind):
    x, residual, gain = torch.randn(3, 64), torch.randn(3, 64), torch.randn(64)
    values, scale, total = norm_round(x, residual, gain, 1e-5, 0.0, kind)
    wanted, wanted_scale = rounded(rms_norm_ref(x + residual, gain, 1e-5), LARGEST[kind], values.dtype)
    assert torch.equal(total, x + residual)
    same(values, wanted, scale, wanted_scale.flatten())
    gate_up = torch.randn(3, 64)
    values, scale = silu_mul_round(gate_up, kind)
    wanted, wanted_scale = round_rows(silu_mul_ref(gate_up), kind)
    assert torch.equal(values.float(), wanted.float())
    assert torch.equal(scale, wanted_scale)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [4096, 14336])
def test_bits_at_real_sizes(kind, columns):
    x = torch.randn(257, 2 * columns, device="cuda", dtype=torch.bfloat16)
    for got, wanted in (
        (round_rows(x[:, :columns].contiguous(), kind), round_rows(x[:, :columns].cpu(), kind)),
        (silu_mul_round(x, kind), silu_mul_round(x.cpu(), kind)),
    ):
        assert (got[0].cpu().float() != wanted[0].float()).float().mean() < 2e-3
        torch.testing.assert_close(got[1].cpu(), wanted[1], rtol=1e-2, atol=0)
