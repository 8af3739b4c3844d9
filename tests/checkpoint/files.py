"""Small GGUF files written by the gguf package, and small models with random weights."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from headrace.checkpoint.load import dummy
from headrace.models import build
from headrace.nn.decoder import Decoder

LLAMA: dict[str, Any] = {
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
}
TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def keys(arch: str, **more: Any) -> dict[str, Any]:
    """The keys of a small model; in `more` a double underscore stands for a dot."""
    base = {key.replace("llama.", f"{arch}.", 1): value for key, value in LLAMA.items()}
    return base | {f"{arch}.{key.replace('__', '.')}": value for key, value in more.items()}


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A metadata value of the type that llama.cpp's converter would give it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, np.float64):
        writer.add_float64(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_gguf(
    path: Path,
    arch: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kinds: dict[str, str] | None = None,
) -> Path:
    """A file with these keys and tensors (torch order), each in the type that `kinds` says, else as it is."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add(writer, key, value)
    for name, array in tensors.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            code = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(array, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model with random weights."""
    with torch.device("meta"):
        built = build(config, 64)
    built.to_empty(device="cpu").to(dtype)
    dummy(built, seed)
    return built
