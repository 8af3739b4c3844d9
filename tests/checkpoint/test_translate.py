"""GGUF metadata and names come out as config.json and checkpoints have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.config import FULL, SLIDING, read_config
from headrace.checkpoint.translate import FAMILIES, hf_name
from headrace.models import build
from tests.checkpoint.files import LLAMA, keys, write_gguf

EMBEDDING = {"token_embd.weight": np.zeros((100, 64), np.float32)}


def read(at: Path, arch: str, tensors: dict[str, np.ndarray] = EMBEDDING, **more: Any) -> dict[str, Any]:
    return read_config(write_gguf(at / "x.gguf", arch, keys(arch, **more), tensors))


def test_llama(tmp_path: Path):
    config = read(tmp_path, "llama")
    assert config["model_type"] == "llama"
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (64, 96, 2)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 16)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (100, 64)
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert config["rope_theta"] == 5000.0
    assert config["tie_word_embeddings"] is True
    assert (config["attention_bias"], config["mlp_bias"], config["rope_scaling"]) == (False, False, None)
    assert config["layer_types"] == [FULL, FULL]


def test_what_tensors_tell(tmp_path: Path):
    factors = np.array([1.0, 1.5, 4.0, 8.0], np.float32)
    tensors = EMBEDDING | {
        "output.weight": np.zeros((100, 64), np.float32),
        "blk.0.attn_q.bias": np.zeros(64, np.float32),
        "blk.0.ffn_up.bias": np.zeros(96, np.float32),
        "rope_freqs.weight": factors,
    }
    config = read(tmp_path, "llama", tensors)
    assert config["tie_word_embeddings"] is False
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)
    assert config["rope_freq_factors"] == factors.tolist()


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, None),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 1.0}, None),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope__scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 16,
                "rope__scaling__yarn_beta_fast": 16.0,
                "rope__scaling__yarn_beta_slow": 2.0,
                "rope__scaling__attn_factor": 2.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": pytest.approx(2 * (0.1 * np.log(4) + 1)),
            },
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, more: dict[str, Any], scaling: dict[str, Any] | None):
    assert read(tmp_path, "qwen2", **more)["rope_scaling"] == scaling


def test_a_llama_with_a_window_is_a_mistral(tmp_path: Path):
    config = read(tmp_path, "llama", attention__sliding_window=9, attention__key_length=32)
    assert (config["model_type"], config["sliding_window"], config["head_dim"]) == ("mistral", 9, 32)
    assert config["layer_types"] == [SLIDING, SLIDING]


def test_qwen_states_a_window_and_does_not_use_it(tmp_path: Path):
    config = read(tmp_path, "qwen3", attention__sliding_window=9, attention__key_length=32)
    assert (config["model_type"], config["sliding_window"], config["head_dim"]) == ("qwen3", None, 32)


def test_gemma2(tmp_path: Path):
    config = read(
        tmp_path,
        "gemma2",
        attention__sliding_window=9,
        attention__key_length=32,
        attention__value_length=32,
        attn_logit_softcapping=40.0,
        final_logit_softcapping=20.0,
    )
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (40.0, 20.0)
    assert config["layer_types"] == [SLIDING, FULL]
    assert config["query_pre_attn_scalar"] == 32
    assert config["hidden_act"] == "gelu_pytorch_tanh"
    assert config["rope_local_base_freq"] is None


def test_gemma3(tmp_path: Path):
    config = read(tmp_path, "gemma3", attention__sliding_window=9, block_count=7, rope__freq_base=1e6)
    assert config["model_type"] == "gemma3_text"
    assert config["layer_types"] == [SLIDING] * 5 + [FULL, SLIDING]
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["query_pre_attn_scalar"] == 16
    stated = read(
        tmp_path,
        "gemma3",
        attention__sliding_window=9,
        attention__sliding_window_pattern=[False, True],
        attention__scale=0.125,
        rope__freq_base_swa=500.0,
    )
    assert stated["layer_types"] == [FULL, SLIDING]
    assert stated["query_pre_attn_scalar"] == 64
    assert stated["rope_local_base_freq"] == 500.0
    every_third = read(
        tmp_path, "gemma3", attention__sliding_window=9, attention__sliding_window_pattern=3, block_count=4
    )
    assert every_third["layer_types"] == [SLIDING, SLIDING, FULL, SLIDING]


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_by_the_book(tmp_path: Path, arch: str, layers: int):
    config = read(tmp_path, arch, attention__sliding_window=9, block_count=layers, attention__key_length=32)
    assert config["query_pre_attn_scalar"] == 64 // 4


def test_token_ids(tmp_path: Path):
    metadata = LLAMA | {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.padding_token_id": (1 << 32) - 1,
        "tokenizer.ggml.tokens": ["a"] * 77,
    }
    config = read_config(write_gguf(tmp_path / "x.gguf", "llama", metadata, {}))
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [2, 5])
    assert "pad_token_id" not in config
    assert config["vocab_size"] == 77


def test_equal_values_per_layer_are_one(tmp_path: Path):
    assert read(tmp_path, "llama", feed_forward_length=[96, 96])["intermediate_size"] == 96
    with pytest.raises(Refused, match="different feed_forward_length for each layer"):
        read(tmp_path, "llama", feed_forward_length=[96, 48])


@pytest.mark.parametrize(
    ("arch", "more", "kind", "message"),
    [
        ("mamba", {}, UnknownName, "unknown GGUF architecture 'mamba'"),
        ("llama", {"expert_count": 8}, Refused, "8 experts"),
        ("llama", {"attention__key_length": 16, "attention__value_length": 8}, Refused, "another width"),
        ("llama", {"block_count": "two"}, BadCheckpoint, r"llama\.block_count = 'two'"),
        ("llama", {"attention__head_count": 0}, BadCheckpoint, "num_attention_heads = 0"),
        ("llama", {"rope__freq_base": -1.0}, BadCheckpoint, "rope_theta -1.0"),
        (
            "gemma3",
            {"attention__sliding_window": 9, "attention__sliding_window_pattern": [True]},
            BadCheckpoint,
            "1 layer",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, arch: str, more: dict[str, Any], kind: type[Refused], message: str):
    with pytest.raises(kind, match=message):
        read(tmp_path, arch, **more)


@pytest.mark.parametrize(
    ("arch", "more", "message"),
    [
        (
            "gemma2",
            {"attention__scale": np.float64(1e-300), "attention__sliding_window": 9},
            "query_pre_attn_scalar is inf",
        ),
        (
            "llama",
            {"rope__scaling__type": "yarn", "rope__scaling__factor": -2.0, "rope__scaling__attn_factor": 2.0},
            r"factor is -2\.0",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_the_model(
    tmp_path: Path, arch: str, more: dict[str, Any], message: str
):
    with pytest.raises(BadCheckpoint, match=message):
        build(read(tmp_path, arch, **more), 16)


def test_a_file_type_that_is_none_says_nothing(tmp_path: Path):
    path = write_gguf(tmp_path / "x.gguf", "llama", LLAMA | {"general.file_type": [1]}, EMBEDDING)
    assert read_config(path)["dtype"] is None


def test_missing_keys_are_named(tmp_path: Path):
    some = {key: value for key, value in LLAMA.items() if "count" not in key}
    with pytest.raises(BadCheckpoint, match="lacks num_hidden_layers, num_attention_heads"):
        read_config(write_gguf(tmp_path / "x.gguf", "llama", some, EMBEDDING))


def test_broken_rope_factors(tmp_path: Path):
    with pytest.raises(BadCheckpoint, match=r"broken rope_freqs\.weight"):
        read(tmp_path, "llama", EMBEDDING | {"rope_freqs.weight": np.array([1.0, 0.0], np.float32)})
    with pytest.raises(Refused, match="longrope"):
        read(tmp_path, "llama", EMBEDDING | {"rope_factors_long.weight": np.ones(2, np.float32)})


def test_a_file_without_an_architecture(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03" + bytes(19))
    with pytest.raises(BadCheckpoint, match=r"lacks general\.architecture"):
        read_config(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("arch", "name", "expected"),
    [
        ("llama", "token_embd.weight", "model.embed_tokens.weight"),
        ("llama", "blk.11.attn_q.bias", "model.layers.11.self_attn.q_proj.bias"),
        ("llama", "blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("qwen3", "blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
        ("gemma2", "blk.0.ffn_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("gemma3", "blk.0.post_ffw_norm.weight", "model.layers.0.post_feedforward_layernorm.weight"),
        ("gemma3", "blk.0.post_attention_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("llama", "blk.0.post_ffw_norm.weight", "blk.0.post_ffw_norm.weight"),
        ("llama", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_exps.weight"),
    ],
)
def test_names(arch: str, name: str, expected: str):
    assert hf_name(name, FAMILIES[arch]) == expected
