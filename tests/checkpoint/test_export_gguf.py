"""A model as a GGUF file is the same model, rounded: weights, configuration and words."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.config import read_config, read_tokenizer
from headrace.checkpoint.export_gguf import export_gguf
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.load import open_source
from headrace.checkpoint.save import save
from headrace.models import gemma, llama, qwen
from headrace.nn.rope import Rope
from headrace.quant.schemes import scheme_named
from tests import tiny

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
CASES: dict[str, dict[str, Any]] = {
    "llama": {**llama.TINY, **SIZES, "sliding_window": None},
    "llama with biases": {**llama.TINY, **SIZES, "attention_bias": True, "mlp_bias": True},
    "mistral": {**llama.TINY, **SIZES, "model_type": "mistral"},
    "tied": {**llama.TINY, **SIZES, "tie_word_embeddings": True},
    "qwen2": {**qwen.TINY, **SIZES, "use_sliding_window": False, "num_attention_heads": 4},
    "qwen3": {**qwen.TINY, **SIZES, "model_type": "qwen3", "use_sliding_window": False},
}
KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rope_theta", "rope_scaling",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "layer_types", "sliding_window", "hidden_act",
)  # fmt: skip


def plain_rounding(name: str, weight: torch.Tensor, scheme: str, tied: bool) -> torch.Tensor:
    if weight.dim() == 1:
        return weight
    finest = name == "lm_head.weight" or (tied and "embed" in name)
    kind = scheme_named("q8_0" if finest else scheme)
    return weight.half().float() if weight.shape[1] % 32 else kind.unpack(kind.pack(weight))


@pytest.mark.parametrize("scheme", ["q8_0", "q4_0"])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_it_is_the_same_model_rounded(config: dict[str, Any], scheme: str, tmp_path: Path):
    folder = tiny.folder(tmp_path / "Tiny-0.6B", config)
    export_gguf(folder, tmp_path / "x.gguf", scheme)
    assert Gguf(tmp_path / "x.gguf").metadata["general.name"] == "Tiny-0.6B"
    before, after = open_source(folder), open_source(tmp_path / "x.gguf")
    assert after.names() == before.names()
    for name in before.names():
        expected = plain_rounding(name, before.read(name), scheme, config["tie_word_embeddings"])
        assert torch.equal(after.read(name), expected), name
    ours, theirs = read_config(tmp_path / "x.gguf"), read_config(folder)
    if config["model_type"] == "qwen2":
        theirs["attention_bias"] = True  # which the architecture has without saying so
    assert {key: ours[key] for key in KEYS} == {key: theirs[key] for key in KEYS}
    assert set(ours["eos_token_id"]) >= set(theirs["eos_token_id"])
    assert ours["rms_norm_eps"] == pytest.approx(theirs["rms_norm_eps"])
    words, said = read_tokenizer(tmp_path / "x.gguf"), read_tokenizer(folder)
    assert words.encode("It's <|im_start|>32\n") == said.encode("It's <|im_start|>32\n")
    assert (words.bos_id, words.eos_ids, words.template_source) == (
        said.bos_id, said.eos_ids, said.template_source,
    )  # fmt: skip


@pytest.mark.parametrize("scheme", ["q8_0", "q4_0"])
def test_rows_and_bytes_are_those_of_the_converter(scheme: str, tmp_path: Path):
    """The permutation of llama.cpp's converter, and the gguf package's own rounding."""
    folder = tiny.folder(tmp_path / "m", CASES["llama"])
    export_gguf(folder, tmp_path / "x.gguf", scheme)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    source, heads = open_source(folder), {"q": 6, "k": 2}
    for part in "qkv":
        weight = source.read(f"model.layers.1.self_attn.{part}_proj.weight").numpy()
        if part in heads:
            shape = (heads[part], 2, len(weight) // heads[part] // 2, weight.shape[1])
            weight = weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)
        wanted = gguf.quantize(np.ascontiguousarray(weight), gguf.GGMLQuantizationType[scheme.upper()])
        assert np.array_equal(read[f"blk.1.attn_{part}.weight"].data, wanted)


def test_rows_that_are_no_whole_blocks_stay_in_16_bits(tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", {**CASES["llama"], "intermediate_size": 80})
    export_gguf(folder, tmp_path / "x.gguf", "q4_0")
    kinds = {name: entry.type for name, entry in Gguf(tmp_path / "x.gguf").tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q4_0"
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_blocks_of_the_scheme_are_not_rounded_again(tmp_path: Path):
    """A file of a file is the same file; in between nothing is unpacked."""
    export_gguf(tiny.folder(tmp_path / "m", CASES["llama"]), tmp_path / "x.gguf", "q4_0")
    export_gguf(tmp_path / "x.gguf", tmp_path / "y.gguf", "q4_0")
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    "yarn with its own factor": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.8,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_positions_are_turned_the_same_way(scaling: dict[str, Any], tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", {**CASES["llama"], "rope_scaling": scaling})
    export_gguf(folder, tmp_path / "x.gguf")
    tables = [Rope.of(read_config(path), 16, 200).table for path in (folder, tmp_path / "x.gguf")]
    torch.testing.assert_close(tables[1], tables[0], atol=2e-4, rtol=0)
    assert not torch.allclose(tables[0], Rope(16, 10000.0, None, 200, 256).table, atol=1e-2)
    export_gguf(tmp_path / "x.gguf", tmp_path / "y.gguf")
    again = Rope.of(read_config(tmp_path / "y.gguf"), 16, 200).table
    torch.testing.assert_close(again, tables[0], atol=2e-4, rtol=0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "windows of qwen": ({**qwen.TINY, **SIZES}, "through a window"),
    "windows of some layers": (
        {**CASES["mistral"], "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "windows on some of its layers",
    ),
    "biases of qwen3": ({**CASES["qwen3"], "attention_bias": True}, "biases in its attention"),
    "wide heads of qwen2": ({**CASES["qwen2"], "num_attention_heads": 6}, "not as wide as its hidden state"),
    "llama3's rope in qwen2": (
        {**CASES["qwen2"], "rope_scaling": SCALINGS["llama3"]},
        "divides the frequencies",
    ),
    "dynamic": ({**CASES["llama"], "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "truncate": (
        {**CASES["llama"], "rope_scaling": SCALINGS["yarn"] | {"truncate": False}},
        "does not round the borders",
    ),
}


@pytest.mark.parametrize(("config", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_file_cannot_say_is_refused(config: dict[str, Any], words: str, tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", config)
    with pytest.raises(Refused, match=words):
        export_gguf(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_other_architectures_and_schemes_are_refused_with_a_list(tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", gemma.TINY)
    with pytest.raises(UnknownName, match="architecture for GGUF 'gemma2'") as caught:
        export_gguf(folder, tmp_path / "x.gguf")
    assert "llama, mistral, qwen2, qwen3" in caught.value.hint
    with pytest.raises(UnknownName, match="'q5_0'") as caught:
        export_gguf(folder, tmp_path / "x.gguf", "q5_0")
    assert caught.value.param == "scheme"
    with pytest.raises(Refused, match=r"does not end in \.gguf"):
        export_gguf(folder, tmp_path / "x.bin")


@pytest.mark.parametrize("change", ["lacks", "has, unknown here,"])
def test_a_checkpoint_with_other_tensors_is_refused(change: str, tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", CASES["llama"])
    source = open_source(folder)
    weights = {name: source.read(name) for name in source.names()}
    if change == "lacks":
        del weights["model.layers.1.mlp.up_proj.weight"]
    else:
        weights["model.layers.1.mlp.other.weight"] = torch.ones(3)
    save(tmp_path / "broken", weights.items(), read_config(folder))
    with pytest.raises(BadCheckpoint, match=rf"{change} 1 of a model's tensors: model\.layers\.1\.mlp"):
        export_gguf(tmp_path / "broken", tmp_path / "x.gguf")


def test_heads_that_do_not_match_are_refused(tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", CASES["llama"])
    source, config = open_source(folder), read_config(folder)
    weights = {name: source.read(name) for name in source.names()}
    save(tmp_path / "broken", weights.items(), config | {"num_key_value_heads": 3})
    with pytest.raises(BadCheckpoint, match=r"k_proj\.weight has 32 rows, not those of 3 heads"):
        export_gguf(tmp_path / "broken", tmp_path / "x.gguf")


@pytest.mark.model
def test_the_default_model_says_what_it_said(default_model: Path, tmp_path: Path):
    """Its words, and its embedding, which has 8 bits, are taken over as they are."""
    export_gguf(default_model, tmp_path / "x.gguf", "q8_0")
    before, after = Gguf(default_model), Gguf(tmp_path / "x.gguf")
    words = {key: value for key, value in before.metadata.items() if key.startswith("tokenizer.")}
    assert {key: after.metadata[key] for key in words} == words
    assert torch.equal(after.raw("token_embd.weight"), before.raw("token_embd.weight"))
    old, new = open_source(default_model), open_source(tmp_path / "x.gguf")
    name = "model.layers.7.self_attn.q_proj.weight"
    assert (old.read(name) - new.read(name)).abs().max() < old.read(name).abs().max() / 200
