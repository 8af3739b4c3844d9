"""Configurations of every spelling come out in one form; those that lack something say what."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.config import FULL, SLIDING, read_config, read_tokenizer, regular
from headrace.models import build
from tests.checkpoint.files import LLAMA, TINY, write_gguf

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def folder(at: Path, config: dict[str, Any], **others: dict[str, Any]) -> Path:
    (at / "config.json").write_text(json.dumps(config))
    for name, value in others.items():
        (at / f"{name}.json").write_text(json.dumps(value))
    return at


@pytest.mark.parametrize(
    "kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Gemma2Config, Gemma3TextConfig]
)
def test_what_transformers_writes_is_read_and_builds(tmp_path: Path, kind: type):
    theirs = kind(**SMALL)
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    assert {key: ours[key] for key in SMALL} == SMALL
    assert ours["model_type"] == theirs.model_type
    assert ours["tie_word_embeddings"] == theirs.tie_word_embeddings
    assert ours["rms_norm_eps"] == theirs.rms_norm_eps
    assert ours["rope_scaling"] is None
    assert "rope_parameters" not in ours
    expected = SLIDING if theirs.model_type == "mistral" else FULL
    assert ours["layer_types"] == (getattr(theirs, "layer_types", None) or [expected] * 7)
    assert len(build(ours, 64).blocks) == 7


def test_both_spellings_of_rope_come_out_alike():
    old = TINY | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    new = TINY | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}
    assert regular(old, "x") == regular(new, "x")
    assert regular(new, "x")["rope_scaling"] == {"rope_type": "llama3", **LLAMA3}
    assert regular(new, "x")["rope_theta"] == 5e5
    assert regular(TINY, "x")["rope_theta"] == 10000.0


def test_rope_of_sliding_layers():
    gemma = SMALL | {"model_type": "gemma3_text", "sliding_window": 8}
    each = {
        "full_attention": {"rope_theta": 2e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 3e4, "rope_type": "default"},
    }
    new = regular(gemma | {"rope_parameters": each}, "x")
    old = {
        "rope_theta": 2e6,
        "rope_local_base_freq": 3e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert new == regular(gemma | old, "x")
    assert {key: new[key] for key in old} == old
    silent = regular(gemma, "x")
    assert (silent["rope_theta"], silent["rope_local_base_freq"]) == (1e6, 1e4)
    each["sliding_attention"] = {"rope_theta": 3e4, "rope_type": "yarn", "factor": 2.0}
    with pytest.raises(Refused, match="sliding layers"):
        regular(gemma | {"rope_parameters": each}, "x")


@pytest.mark.parametrize(
    ("more", "types", "window"),
    [
        ({"model_type": "llama", "sliding_window": 4}, [FULL] * 7, None),
        ({"model_type": "mistral", "sliding_window": 4}, [SLIDING] * 7, 4),
        ({"model_type": "mistral", "sliding_window": None}, [FULL] * 7, None),
        ({"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": False}, [FULL] * 7, None),
        (
            {"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 5},
            [FULL] * 5 + [SLIDING] * 2,
            4,
        ),
        ({"model_type": "gemma2", "sliding_window": 4}, [SLIDING, FULL] * 3 + [SLIDING], 4),
        ({"model_type": "gemma3_text", "sliding_window": 4}, [SLIDING] * 5 + [FULL, SLIDING], 4),
        (
            {"model_type": "gemma3_text", "sliding_window": 4, "sliding_window_pattern": 2},
            [SLIDING, FULL] * 3 + [SLIDING],
            4,
        ),
    ],
)
def test_layer_types(more: dict[str, Any], types: list[str], window: int | None):
    config = regular(SMALL | more, "x")
    assert config["layer_types"] == types
    assert config["sliding_window"] == window


def test_end_ids_of_both_files_are_joined(tmp_path: Path):
    path = folder(tmp_path, TINY | {"eos_token_id": 2}, generation_config={"eos_token_id": [7, 2]})
    assert read_config(path)["eos_token_id"] == [2, 7]
    assert read_config(path / "config.json")["eos_token_id"] == [2, 7]
    assert regular(TINY, "x")["eos_token_id"] == []


def test_what_is_missing_gets_a_default_or_a_name():
    config = regular({key: value for key, value in TINY.items() if key != "num_key_value_heads"}, "x")
    assert config["num_key_value_heads"] == 4
    assert config["head_dim"] == 16
    assert config["hidden_act"] == "silu"
    assert regular(TINY | {"torch_dtype": "bfloat16"}, "x")["dtype"] == "bfloat16"
    gone = {key: value for key, value in TINY.items() if key not in ("vocab_size", "hidden_size")}
    with pytest.raises(BadCheckpoint, match=r"where \(model type 'llama'\) lacks hidden_size, vocab_size"):
        regular(gone, "where")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hidden_size": "many"}, "hidden_size = 'many'"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers ="),
        ({"num_hidden_layers": 1 << 20}, "1048576 layers"),
        ({"rope_theta": float("nan")}, "rope_theta nan"),
        ({"rope_scaling": 8}, "rope_scaling 8"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters"),
        ({"layer_types": [FULL]}, r"1 layer_types \(full_attention\) for 2 layers"),
        ({"layer_types": ["full_attention", "magic"]}, "magic"),
        ({"layer_types": [SLIDING, FULL]}, "sliding_window None"),
        ({"eos_token_id": "end"}, "eos_token_id 'end'"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern 0"),
        (
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": "28"},
            "max_window_layers '28'",
        ),
    ],
)
def test_absurd_values_are_named(more: dict[str, Any], message: str):
    with pytest.raises(BadCheckpoint, match=message):
        regular(TINY | more, "x")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vision_config": {}, "text_config": {}}, "more than text: vision_config, text_config"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"quantization_config": {"quant_method": "quanto"}}, "quantized with 'quanto'"),
    ],
)
def test_what_is_known_and_not_supported(more: dict[str, Any], message: str):
    with pytest.raises(Refused, match=message):
        regular(TINY | more, "x")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        read_config(tmp_path)


def test_no_file_and_a_huge_one(tmp_path: Path):
    with pytest.raises(UnknownName, match=r"no file .*config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * ((1 << 24) + 1))
    with pytest.raises(BadCheckpoint, match="too many"):
        read_config(tmp_path)


def test_a_tokenizer_is_found_in_both_kinds(tmp_path: Path):
    with pytest.raises(Refused, match="tokenizer"):
        read_tokenizer(tmp_path)
    with pytest.raises(BadCheckpoint, match="tokenizer"):
        read_tokenizer(write_gguf(tmp_path / "x.gguf", "llama", LLAMA, {}))
