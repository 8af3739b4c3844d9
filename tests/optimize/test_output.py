"""What is written is what Hugging Face tools load, and says how to write it again."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from headrace.checkpoint import shards
from headrace.checkpoint.config import read_config, read_tokenizer
from headrace.checkpoint.sampling import recommended
from headrace.engine.start import load_model, look
from headrace.nn.decoder import Decoder
from headrace.optimize.recipe import Recipe
from headrace.optimize.run import run
from tests import tiny
from tests.checkpoint.files import LLAMA, model, write_gguf
from tests.checkpoint.test_source import converted
from tests.optimize import small
from tests.text.vocabularies import byte_level_metadata

IDS = torch.arange(5, 45)
# How far logits of up to 3 may be apart, where inputs are rounded: transformers rounds to 127.5 and not 127.
NEAR = {"w8a8": 0.3}
MIXED = {
    "layers": {"model.layers.1.*": "none", "*.down_proj": "w8a16_g32", "*.o_proj": "w8a8", "lm_head": "w8a16"}
}


def loaded(folder: Path) -> Decoder:
    config = tiny.config(folder, quantization="checkpoint", dtype="float32")
    return load_model(config, look(config))


@pytest.mark.parametrize(
    ("scheme", "more", "tied"),
    [
        ("w8a8", {"passes": ["smoothquant", "gptq"]}, False),
        ("w4a16_g32", MIXED, True),
        ("w4a16_g32", {"passes": ["rotation", "awq", "gptq"]}, True),
        ("none", {"layers": {"model.layers.1.*": "w4a16_g32"}}, False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same(
    tmp_path: Path, text: Path, scheme: str, more: dict[str, Any], tied: bool
):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = small.model(tmp_path / "m", tie_word_embeddings=tied, sliding_window=None)
    outcome = run(str(base), str(tmp_path / "out"), small.recipe(text, scheme=scheme, **more))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = theirs(IDS[None]).logits[0].float()
    ours = tiny.logits(loaded(tmp_path / "out"), IDS.tolist())
    used = {layer.scheme for layer in outcome.layers}
    near = max(NEAR.get(name, 1e-3) for name in used)
    torch.testing.assert_close(ours, expected, rtol=0, atol=near)
    said = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert said("größer")["input_ids"] == tiny.tokenizer(base).encode("größer")


def test_a_recipe_written_beside_the_weights_gives_the_same_files(tmp_path: Path, text: Path):
    base = small.model(tmp_path / "m")
    run(
        str(base),
        str(tmp_path / "a"),
        small.recipe(text, passes=["awq", {"gptq": {"damp": 0.1}}], scheme=None),
    )
    again = Recipe.read(tmp_path / "a" / "recipe.yaml")
    assert again.scheme == "w4a16_g32"
    run(str(base), str(tmp_path / "b"), again)
    assert small.hashes(tmp_path / "a") == small.hashes(tmp_path / "b")


def test_the_card_says_what_was_done(tmp_path: Path, text: Path):
    base = small.model(tmp_path / "m")
    outcome = run(str(base), str(tmp_path / "out"), small.recipe(text, passes=["gptq"], **MIXED))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: headrace\n")
    assert "damp 0.01" in card
    assert f"headrace optimize {base} -o OUT --recipe recipe.yaml" in card
    assert "6 windows of 24 tokens (seed 0)" in card
    for layer in outcome.layers:
        assert (f"| {layer.name} | {layer.scheme} | gptq |" in card) == (layer.scheme != "none")
    run(str(base), str(tmp_path / "plain"), small.recipe(None))
    assert "No calibration" in (tmp_path / "plain" / "README.md").read_text()


def test_a_card_says_odd_names_so_that_they_are_read_as_they_are(tmp_path: Path):
    base = small.model(tmp_path / "a: b [c] #d 'e' 0.6B")
    run(str(base), str(tmp_path / "out"), small.recipe(None))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"\n# {base.name}, optimized\n" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == str(base)
    (command,) = (line for line in card.splitlines() if "-o OUT" in line)
    assert shlex.split(command)[2] == str(base)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_what_stays_has_the_dtype_asked_for(tmp_path: Path, dtype: str):
    base = small.model(tmp_path / "m", dtype="float16")
    run(str(base), str(tmp_path / "out"), small.recipe(None, dtype=dtype))
    expected = {"auto": "float16"}.get(dtype, dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == expected
    found = {one.name: one.dtype for one in shards.entries(tmp_path / "out" / "model.safetensors")}
    short = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[expected]
    for name in ("model.norm.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight_scale"):
        assert found[name] == short


def test_many_shards(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    base = small.model(tmp_path / "m")
    run(str(base), str(tmp_path / "one"), small.recipe(text))
    monkeypatch.setattr(shards.plan, "__defaults__", (40_000,))
    outcome = run(str(base), str(tmp_path / "many"), small.recipe(text))
    files = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert outcome.after == sum((tmp_path / "many" / name).stat().st_size for name in files)
    ours, expected = (tiny.logits(loaded(tmp_path / name), IDS.tolist()) for name in ("many", "one"))
    assert torch.equal(ours, expected)


def test_a_gguf_file_becomes_a_folder(tmp_path: Path):
    vocabulary = byte_level_metadata()
    size = len(vocabulary["tokenizer.ggml.tokens"])
    settings = {**small.SIZES, "num_hidden_layers": 2, "vocab_size": size, "tie_word_embeddings": False}
    settings |= {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}
    advice = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20}
    keys = {**LLAMA, **vocabulary, **advice, "llama.feed_forward_length": 96}
    tensors = converted(settings, "llama", model(settings))
    kinds = {name: "Q8_0" for name in tensors if name.endswith("attn_q.weight")}
    path = write_gguf(tmp_path / "x.gguf", "llama", keys, tensors, kinds)
    outcome = run(str(path), str(tmp_path / "out"), small.recipe(None, scheme="w8a16", dtype="auto"))
    assert outcome.layers[0].before == 64 * 64 * 34 // 32
    source, made = read_tokenizer(path), read_tokenizer(tmp_path / "out")
    assert source.fingerprint == made.fingerprint
    assert (source.eos_ids, source.bos_id, source.template_source) == (
        made.eos_ids,
        made.bos_id,
        made.template_source,
    )
    assert recommended(tmp_path / "out") == {"temperature": 0.6, "top_k": 20}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["do_sample"] is True
    theirs, ours = read_config(path), read_config(tmp_path / "out")
    left = {"quantization_config", "architectures", "dtype", "eos_token_id"}
    assert {k: v for k, v in ours.items() if k not in left} == {
        k: v for k, v in theirs.items() if k not in left
    }
    assert ours["architectures"] == ["LlamaForCausalLM"]
    config = tiny.config(path, quantization="none", dtype="float32")
    expected = tiny.logits(load_model(config, look(config)), IDS.tolist())
    found = tiny.logits(loaded(tmp_path / "out"), IDS.tolist())
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_quantized_checkpoint_can_be_the_source(tmp_path: Path):
    base = small.model(tmp_path / "m")
    run(str(base), str(tmp_path / "a"), small.recipe(None, scheme="w8a16"))
    run(str(tmp_path / "a"), str(tmp_path / "b"), small.recipe(None, scheme="w8a16"))
    ours, expected = (tiny.logits(loaded(tmp_path / name), IDS.tolist()) for name in ("b", "a"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.1)
