"""Qwen2 has a bias on q, k and v; Qwen3 norms q and k instead; in both the upper layers may have a window."""

from typing import Any

from headrace.models.llama import RENAME as RENAME
from headrace.nn.decoder import Decoder
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape, count, flag
from headrace.nn.windows import windows

HANDLES = ("qwen2", "qwen3")
TINY: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 256,
    "use_sliding_window": True,
    "sliding_window": 7,
    "max_window_layers": 1,
    "tie_word_embeddings": True,
}


def build(config: dict[str, Any], max_len: int) -> Decoder:
    """See models.build."""
    if config["model_type"] == "qwen2":
        shape = Shape.of(config, qkv_bias=True)
    else:
        bias = flag(config, "attention_bias", False)
        shape = Shape.of(config, qkv_bias=bias, out_bias=bias, qk_norm=True)
    rope = Rope.of(config, shape.head_dim, max_len)
    if not flag(config, "use_sliding_window", False):
        return Decoder(shape, [(None, rope)] * shape.layers, RENAME)
    # The number of layers below the first with a window may be 0, which `count` would not take.
    first = 0 if config.get("max_window_layers") == 0 else count(config, "max_window_layers", 28)
    slides = windows(config, shape.layers, lambda i: i >= first)
    return Decoder(shape, [(window, rope) for window in slides], RENAME)
