"""Gemma 2 and 3: norms around both halves, (1 + w) norms, scaled embeddings, windows on most layers.

Gemma 2 soft-caps attention scores and logits; Gemma 3 norms q and k instead, and its windowed layers have a
rope base of their own, unscaled (Gemma 2 and Gemma 3 reports, section 2).
"""

from typing import Any

from headrace.base.errors import BadCheckpoint
from headrace.models import llama
from headrace.models.llama import RENAME as RENAME
from headrace.nn.decoder import Decoder
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape, count, flag, number, optional
from headrace.nn.windows import windows

HANDLES = ("gemma2", "gemma3_text")
TINY: dict[str, Any] = {
    **llama.TINY,
    "model_type": "gemma2",
    "num_attention_heads": 4,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 500.0,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}


def build(config: dict[str, Any], max_len: int) -> Decoder:
    """See models.build."""
    if config.get("use_bidirectional_attention"):
        raise BadCheckpoint("config.json: use_bidirectional_attention is set; only causal attention is known")
    third = config["model_type"] == "gemma3_text"
    bias = flag(config, "attention_bias", False)
    shape = Shape.of(
        config,
        act=str(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        tied=flag(config, "tie_word_embeddings", True),
        scale=number(config, "query_pre_attn_scalar", 256) ** -0.5,
        embed_scale=count(config, "hidden_size") ** 0.5,
        logits_softcap=optional(config, "final_logit_softcapping"),
        softcap=None if third else optional(config, "attn_logit_softcapping"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=third,
        post_norms=True,
        norm_offset=1.0,
    )
    far = near = Rope.of(config, shape.head_dim, max_len, 1_000_000.0 if third else 10_000.0)
    if third:
        base = number(config, "rope_local_base_freq", 10_000.0)
        near = Rope(shape.head_dim, base, None, max_len, count(config, "max_position_embeddings"))
    layers = [(window, far if window is None else near) for window in windows(config, shape.layers)]
    return Decoder(shape, layers, RENAME)
