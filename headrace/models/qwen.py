"""Qwen2 has a bias on q, k and v; Qwen3 norms q and k instead; in both the upper layers may have a window."""

from typing import Any

from headrace.models import llama
from headrace.models.llama import RENAME as RENAME
from headrace.nn.decoder import Decoder
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape, flag
from headrace.nn.windows import windows

HANDLES = ("qwen2", "qwen3")
TINY: dict[str, Any] = {
    **llama.TINY,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": True,
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
    return Decoder(shape, [(window, rope) for window in windows(config, shape.layers)], RENAME)
