"""Real models' shapes, to be filled with random weights: speed depends on these and not on the values."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.base.config import Config
from headrace.base.errors import UnknownName

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "head_dim": 128,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "dtype": "bfloat16",
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "head_dim": 128,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "dtype": "bfloat16",
}


def sized(
    like: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, kv: int, tied: bool
) -> dict[str, Any]:
    """A config.json with these sizes, otherwise like another."""
    return like | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": tied,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": sized(_LLAMA, 4096, 14336, 32, 32, 8, False) | {"rope_scaling": _LLAMA3_ROPE},
    "llama-3.2-1b": sized(_LLAMA, 2048, 8192, 16, 32, 8, True)
    | {"rope_scaling": _LLAMA3_ROPE | {"factor": 32.0}, "head_dim": 64},
    "qwen3-0.6b": sized(_QWEN3, 1024, 3072, 28, 16, 8, True),
    "qwen3-4b": sized(_QWEN3, 2560, 9728, 36, 32, 8, True),
    "qwen3-8b": sized(_QWEN3, 4096, 12288, 36, 32, 8, False),
    "smollm2-135m": sized(_LLAMA, 576, 1536, 30, 9, 3, True)
    | {
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "head_dim": 64,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


LONGEST = 32768
"""Most tokens of a request of a shape, where none is said."""


def shaped(config: Config, name: str, folder: Path) -> Config:
    """`config` with that shape instead of its model; its config.json is written into `folder`. Raises UnknownName."""
    if name not in SHAPES:
        raise UnknownName.among("shape", name, list(SHAPES), param="shape")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name], indent=1))
    longest = config.model.max_len or min(LONGEST, int(SHAPES[name]["max_position_embeddings"]))
    return replace(config, model=replace(config.model, path=str(folder), dummy_weights=True, max_len=longest))
