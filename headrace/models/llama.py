"""Llama is the plain decoder; Mistral is Llama whose layers all look through a sliding window."""

from typing import Any

from headrace.nn.decoder import Decoder
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape, flag
from headrace.nn.windows import windows

HANDLES = ("llama", "mistral")
RENAME = {"blocks.": "model.layers.", "embed_tokens.": "model.embed_tokens.", "norm.": "model.norm."}
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 256,
    "sliding_window": 7,
    "tie_word_embeddings": False,
}


def build(config: dict[str, Any], max_len: int) -> Decoder:
    """See models.build."""
    biases = {}
    if config["model_type"] == "llama":
        bias = flag(config, "attention_bias", False)
        biases = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": flag(config, "mlp_bias", False)}
    shape = Shape.of(config, **biases)
    rope = Rope.of(config, shape.head_dim, max_len)
    return Decoder(shape, [(window, rope) for window in windows(config, shape.layers)], RENAME)
