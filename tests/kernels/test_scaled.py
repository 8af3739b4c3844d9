"""Products with 8-bit weights: that every kernel and every fusion equals its definition."""

import itertools

import pytest
import torch
from torch.nn import functional

from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Gemv8, Skinny, Wide
from headrace.kernels.norm import rms_norm_ref
from headrace.kernels.rounding import DTYPES, LARGEST, round_rows, rounded
from headrace.kernels.scaled import (
    Weight8,
    gated_linear8,
    linear8,
    norm_linear8,
    scaled_linear_ref,
    whole_product,
)
from tests.kernels.closeness import assert_close
from tests.kernels.simulated_gluon import ring as ring

pytestmark = pytest.mark.usefixtures("interpreted")
KINDS = ["fp8", "int8"]
FUSIONS = list(itertools.product([False, True], repeat=4))  # gated, norm, before, bias
SOME = [FUSIONS[i] for i in (0, 4, 7, 9, 15)]


def weight8(rows, k, kind, device, rounds=True, bias=False, blocked=False, dtype=torch.float32):
    """A weight with rows of different sizes."""
    wide = torch.randn(rows, k, device=device) * torch.logspace(-1, 1, rows, device=device)[:, None]
    if blocked:
        count = -(-rows // 128), -(-k // 128)
        scale = torch.rand(count, device=device) + 0.5
        values = wide.clamp(-400, 400).to(DTYPES[kind])
    else:
        values, scale = rounded(wide, LARGEST[kind], DTYPES[kind])
    shift = torch.randn(rows, device=device).to(dtype) if bias else None
    return Weight8(values.contiguous(), scale, rounds, None, shift, blocked)


def plainly(x, w):
    """linear8 by numbers that the values stand for."""
    x = x.float().cpu()
    if w.rounded:
        values, scale = round_rows(x, w.kind, fixed=None if w.fixed is None else w.fixed.cpu())
        x = values.float() * scale[:, None]
    bias = None if w.bias is None else w.bias.float().cpu()
    return functional.linear(x, w.weight.float().cpu() * w.scale.float().cpu(), bias)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [Gemv8(4, 1, 1), Gemv8(4, 2, 1, 2)])
def test_one_token_with_every_fusion(device, words, rounds, kind, config):
    from headrace.kernels.gpu.gemv8 import Around8, gemv8

    dtype = torch.float16 if words and not rounds else torch.float32
    cases = [((5, 528), f) for f in (FUSIONS if config.split == 1 and words else SOME)] + [
        ((17, 1040), SOME[-1])
    ]
    for (n, k), (gated, norm, before, bias) in cases:
        w = weight8(2 * n if gated else n, k, kind, device, rounds, bias, dtype=dtype)
        x, residual, gain = torch.randn(3, 1, k, device=device).to(dtype)
        around = Around8(
            rounds, None, w.bias, gain[0] if norm else None, 1e-5, 0.5, residual if norm and before else None, gated
        )  # fmt: skip
        total = x if around.before is None else x + residual
        normed = total if around.gain is None else rms_norm_ref(total, gain[0], 1e-5, 0.5)
        wanted = plainly(normed, w)
        wanted = silu_mul_ref(wanted) if gated else wanted
        out, kept = gemv8(x, w.weight, w.scale, config, 3, around, torch.float32, words=words)
        # Rounding falls otherwise for a few numbers next to a tie; halves are sums of eight products.
        assert_close(out.cpu(), wanted, 4e-3)
        assert_close(kept, total)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_by_a_scale_from_calibration(device, kind):
    from headrace.kernels.gpu.gemv8 import Around8, gemv8

    w, x = weight8(9, 64, kind, device), torch.randn(1, 64, device=device)
    fixed = torch.tensor([0.004], device=device)
    values, scale = round_rows(x.cpu(), kind, fixed=fixed.cpu())
    wanted = (values.float() * scale[:, None]) @ (w.weight.float() * w.scale).cpu().T
    out, _ = gemv8(x, w.weight, w.scale, Gemv8(4, 1, 1), 2, Around8(fixed=fixed))
    assert_close(out.cpu(), wanted, 1e-3)


def test_one_token_of_zeros(device):
    from headrace.kernels.gpu.gemv8 import Around8, gemv8

    w, x = weight8(5, 64, "fp8", device), torch.zeros(1, 64, device=device, dtype=torch.float16)
    for rounds in (False, True):
        assert not gemv8(x, w.weight, w.scale, Gemv8(4, 1, 1), 2, Around8(rounds))[0].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("split", "tokens"), [(1, 1), (1, 17), (3, 5)])
def test_few_tokens(device, kind, split, tokens):
    from headrace.kernels.gpu.product import split_counters
    from headrace.kernels.gpu.tiles8 import skinny8

    w = weight8(70, 208, kind, device, bias=True)
    values, scale = round_rows(torch.randn(tokens, 208, device=device), kind)
    wanted = scaled_linear_ref(values.cpu(), scale.cpu(), on(w, "cpu"), torch.float32)
    for _ in range(2):
        out = skinny8(values, scale, w.weight, w.scale, Skinny(64, 32, split, 4, 3), w.bias, torch.float32)
        assert_close(out.cpu(), wanted, 1e-3)
        assert not split_counters(values.device).any()


@pytest.mark.parametrize("kind", KINDS)
def test_few_tokens_as_they_are(device, kind):
    from headrace.kernels.gpu.tiles8 import skinny8

    w, x = weight8(70, 96, kind, device), torch.randn(5, 96, device=device, dtype=torch.float16)
    out = skinny8(x, None, w.weight, w.scale, Skinny(64, 32, 2, 4, 3), w.bias, torch.float32)
    wanted = functional.linear(x.float(), w.weight.float() * w.scale)
    assert_close(out, wanted, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_many_tokens(device, kind):
    from headrace.kernels.gpu.tiles8 import wide8

    w = weight8(70, 208, kind, device, bias=True)
    values, scale = round_rows(torch.randn(75, 208, device=device), kind)
    wanted = scaled_linear_ref(values.cpu(), scale.cpu(), on(w, "cpu"), torch.float32)
    out = wide8(values, scale, w.weight, w.scale, Wide(64, 32, 64, 4, 3), w.bias, torch.float32, programs=3)
    assert_close(out.cpu(), wanted, 1e-3)


@pytest.mark.parametrize("tokens", [3, 66])
def test_blocks_of_weights(device, tokens):
    from headrace.kernels.gpu.tiles8 import skinny8, wide8

    w = weight8(200, 272, "fp8", device, blocked=True)
    values, scale = round_rows(torch.randn(tokens, 272, device=device), "fp8", 128)
    wanted = scaled_linear_ref(values.cpu(), scale.cpu(), on(w, "cpu"), torch.float32)
    if tokens <= 64:
        out = skinny8(values, scale, w.weight, w.scale, Skinny(64, 128, 2, 4, 3), None, torch.float32)
    else:
        out = wide8(
            values, scale, w.weight, w.scale, Wide(64, 128, 128, 4, 3), None, torch.float32, programs=2
        )
    assert_close(out.cpu(), wanted, 1e-3)


def on(w, device):
    """The same weight elsewhere."""
    fixed, bias = (None if t is None else t.to(device) for t in (w.fixed, w.bias))
    return Weight8(w.weight.to(device), w.scale.to(device), w.rounded, fixed, bias, w.blocked)


@pytest.mark.parametrize("kind", KINDS)
def test_the_definitions_are_compositions(kind):
    w, x = weight8(8, 48, kind, "cpu", bias=True), torch.randn(2, 3, 48)
    assert_close(linear8(x, w), plainly(x.view(6, 48), w).view(2, 3, 8), 1e-5)
    x, gain = torch.randn(3, 48), torch.randn(48)
    out, total = norm_linear8(x, x, gain, 1e-5, 0.0, w, gated=True)
    assert_close(out, silu_mul_ref(plainly(rms_norm_ref(2 * x, gain, 1e-5), w)), 1e-5)
    assert torch.equal(total, 2 * x)
    gate_up = torch.randn(3, 96)
    assert_close(gated_linear8(gate_up, w), plainly(silu_mul_ref(gate_up), w), 1e-5)


def test_integers_are_summed_exactly():
    a, b = (torch.randint(-127, 128, (n, 4096), dtype=torch.int8) for n in (3, 5))
    assert torch.equal(whole_product(a, b).long(), a.long() @ b.long().T)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 16, 33, 64, 65, 300])
@pytest.mark.parametrize(("n", "k"), [(6144, 4096), (4096, 14336)])
def test_layers_of_real_size(kind, rounds, tokens, n, k):
    w = weight8(n, k, kind, "cuda", rounds, dtype=torch.bfloat16)
    x, residual = torch.randn(2, tokens, k, device="cuda", dtype=torch.bfloat16)
    gain = torch.randn(k, device="cuda", dtype=torch.bfloat16)
    assert_close(linear8(x, w).float().cpu(), plainly(x, w), 8e-3)
    out, total = norm_linear8(x, residual, gain, 1e-5, 0.0, w, gated=True)
    normed = rms_norm_ref(x + residual, gain, 1e-5)
    assert torch.equal(total, x + residual)
    assert_close(out.float().cpu(), silu_mul_ref(plainly(normed, w)), 2e-2)
    gate_up = torch.randn(tokens, 2 * k, device="cuda", dtype=torch.bfloat16)
    assert_close(gated_linear8(gate_up, w).float().cpu(), plainly(silu_mul_ref(gate_up), w), 2e-2)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Dispatch as on an H200, for kernels that are interpreted."""
    if torch.cuda.is_available():
        return
    for module in ("scaled", "rounding", "activation", "norm"):
        monkeypatch.setattr(f"headrace.kernels.{module}.on_gpu", lambda *tensors: True)
    monkeypatch.setattr("headrace.kernels.configs.capability", lambda device: (9, 0))
    monkeypatch.setattr("headrace.kernels.configs.pdl", lambda device: False)
    monkeypatch.setattr("headrace.kernels.configs.gluon", lambda: False)  # which has no interpreter
    monkeypatch.setattr("headrace.kernels.configs.multiprocessors", lambda device: 2)
    monkeypatch.setattr(
        "headrace.kernels.scaled.library", lambda x, s, w, dtype: scaled_linear_ref(x, s, w, dtype)
    )


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize(("kind", "rounds", "blocked"), [
    ("fp8", True, False), ("int8", True, False), ("fp8", False, False), ("int8", False, False), ("fp8", True, True),
])  # fmt: skip
def test_each_number_of_tokens_finds_its_kernel(device, as_on_a_gpu, tokens, kind, rounds, blocked):
    w = weight8(64, 128, kind, device, rounds, True, blocked, torch.float16)
    reference = Weight8(w.weight, w.scale if not blocked else w.scale.expand(64, 1), rounds, bias=w.bias)
    x, residual = torch.randn(2, tokens, 128, device=device, dtype=torch.float16)
    gain = torch.rand(128, device=device, dtype=torch.float16) + 0.5
    gate_up = torch.randn(tokens, 256, device=device, dtype=torch.float16)
    normed = rms_norm_ref(x + residual, gain, 1e-5)
    assert_close(linear8(x, w).float().cpu(), plainly(x, reference), 4e-3)
    for gated in (False, True):
        out, total = norm_linear8(x, residual, gain, 1e-5, 0.0, w, gated)
        wanted = plainly(normed, reference)
        assert_close(out.float().cpu(), silu_mul_ref(wanted) if gated else wanted, 1e-2)
        assert torch.equal(total, x + residual)
    assert_close(gated_linear8(gate_up, w).float().cpu(), plainly(silu_mul_ref(gate_up), reference), 1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_few_tokens_go_through_a_ring_where_there_is_one(device, as_on_a_gpu, ring, monkeypatch, kind):
    monkeypatch.setattr("headrace.kernels.configs.gluon", lambda: True)
    monkeypatch.setattr("headrace.kernels.gpu.tiles8.skinny8", None)
    w = weight8(48, 144, kind, device, bias=True, dtype=torch.float16)
    x, residual = torch.randn(2, 5, 144, device=device, dtype=torch.float16)
    gain = torch.rand(144, device=device, dtype=torch.float16) + 0.5
    assert_close(linear8(x, w).float().cpu(), plainly(x, w), 4e-3)
    out, _ = norm_linear8(x, residual, gain, 1e-5, 0.0, w, gated=True)
    assert_close(out.float().cpu(), silu_mul_ref(plainly(rms_norm_ref(x + residual, gain, 1e-5), w)), 1e-2)
