"""An engine with quantized weights: rounded while loading, or as a checkpoint has them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.base.errors import Refused, UnknownName
from headrace.engine.start import load_model, look
from headrace.kernels import int8
from headrace.nn.decoder import Decoder
from headrace.nn.packed import PackedRows
from headrace.optimize.run import run
from tests import tiny
from tests.optimize import small

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}
PROMPT = list(range(5, 25))


def started(at: Path, **more: Any) -> tuple[Decoder, Any]:
    config = tiny.config(at, **more)
    found = look(config)
    return load_model(config, found), found.plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("q") / "m", **SIZES)


@pytest.mark.parametrize("name", ["fp8", "w8a8", "w4a16_g32", "q8_0", "mxfp4"])
def test_weights_are_rounded_while_loading(folder: Path, name: str):
    model, plan = started(folder, quantization=name)
    plain, dense = started(folder)
    for names, layer in model.linears():
        assert isinstance(layer.packed, PackedRows) == ("lm_head" not in names)
    assert plan.quantization == name
    error = (tiny.logits(model, PROMPT) - tiny.logits(plain, PROMPT)).norm() / tiny.logits(
        plain, PROMPT
    ).norm()
    assert 0 < error < (0.8 if "4" in name else 0.2)
    held = sum(t.nbytes for t in (*model.buffers(), *model.parameters()))
    assert plan.memory.weights == pytest.approx(held, rel=0.02)
    assert plan.memory.weights < dense.memory.weights


def test_dummy_weights_are_rounded_too(folder: Path):
    model, _ = started(folder, quantization="fp8", **{"model.dummy_weights": True})
    assert all(layer.packed is not None for names, layer in model.linears() if "lm_head" not in names)


def test_a_quantized_checkpoint_is_kept_or_unpacked(folder: Path, tmp_path: Path):
    model, _ = started(folder, quantization="w4a16_g32")
    plain = small.recipe(None, passes=[{"rtn": {"steps": 1}}])
    run(str(folder), str(tmp_path / "m"), plain)
    expected = tiny.logits(model, PROMPT)
    for how, packed in (("checkpoint", True), ("none", False)):
        again, _ = started(tmp_path / "m", quantization=how)
        assert (next(again.linears())[1].packed is not None) == packed
        torch.testing.assert_close(tiny.logits(again, PROMPT), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(Refused, match="quantized already"):
        started(tmp_path / "m", quantization="fp8")


@pytest.mark.skipif(int8.missing() is not None, reason=str(int8.missing()))
def test_by_itself_a_cpu_multiplies_a_quantized_checkpoint_in_8_bits(folder: Path, tmp_path: Path):
    run(str(folder), str(tmp_path / "m"), small.recipe(None, passes=[{"rtn": {"steps": 1}}]))
    (exact, _), (fast, plan) = started(tmp_path / "m", quantization="none"), started(tmp_path / "m")
    assert plan.quantization == "int8"
    wanted, found = tiny.logits(exact, PROMPT), tiny.logits(fast, PROMPT)
    assert 0 < (found - wanted).norm() < 0.05 * wanted.norm()


def test_what_does_not_fit_is_said_before_anything_is_read(folder: Path):
    with pytest.raises(
        Refused, match=r"w4a16 cannot pack model\.layers\.0\.self_attn\.q_proj: groups of 128"
    ):
        look(tiny.config(folder, quantization="w4a16"))


def test_it_is_not_deterministic(folder: Path):
    with pytest.raises(Refused, match=r"against schedule\.deterministic"):
        look(tiny.config(folder, quantization="fp8", **{"schedule.deterministic": True}))


def test_an_unknown_name_is_answered_with_the_nearest(folder: Path):
    with pytest.raises(UnknownName, match="did you mean 'fp8'"):
        look(tiny.config(folder, quantization="fp88"))
