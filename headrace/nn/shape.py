"""The numbers of a decoder, read from a Hugging Face config.json with every complaint naming its key."""

import sys
from dataclasses import dataclass, replace
from typing import Any

from headrace.base.errors import BadCheckpoint

MISSING = object()
# Sizes beyond these are damage, not models: better said here than after an allocation of their product.
MOST, MOST_HEADS, MOST_LAYERS = 1 << 27, 1 << 16, 1000


def number(config: dict[str, Any], key: str, default: object = MISSING) -> float:
    """A finite positive number. A key that is missing or null takes the default, or raises BadCheckpoint."""
    value = config.get(key)
    if value is None:
        value = default
    if value is MISSING:
        raise BadCheckpoint(f"config.json has no {key}; expected a number", param=key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise BadCheckpoint(f"config.json: {key} is {value!r}; expected a positive number", param=key)
    return float(value)


def count(config: dict[str, Any], key: str, default: object = MISSING, *, most: int = MOST) -> int:
    """A positive whole number of at most `most`, as `number`."""
    value = number(config, key, default)
    if not value.is_integer() or value > most:
        raise BadCheckpoint(
            f"config.json: {key} is {value!r}; expected a whole number up to {most}", param=key
        )
    return int(value)


def flag(config: dict[str, Any], key: str, default: bool) -> bool:
    """A truth value; missing or null takes the default. Raises BadCheckpoint for anything else."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadCheckpoint(f"config.json: {key} is {value!r}; expected true or false", param=key)
    return value


def optional(config: dict[str, Any], key: str) -> float | None:
    """A positive number or None where the key is missing or null."""
    return None if config.get(key) is None else number(config, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the layers of a decoder have in common."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    act: str
    tied: bool
    scale: float  # of the scores, before softmax
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False  # a norm after attention and after the MLP too, before the residual add
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    softcap: float | None = None  # of attention scores
    logits_softcap: float | None = None

    @classmethod
    def of(cls, config: dict[str, Any], **difference: Any) -> "Shape":
        """The shape that `config` describes, with the fields in which an architecture differs.

        Raises BadCheckpoint naming the key that is missing or makes no sense.
        """
        hidden, heads = count(config, "hidden_size"), count(config, "num_attention_heads", most=MOST_HEADS)
        kv_heads = count(config, "num_key_value_heads", heads)
        head_dim = count(config, "head_dim", max(1, hidden // heads), most=MOST_HEADS)
        act = config.get("hidden_act") or "silu"
        if heads % kv_heads:
            raise BadCheckpoint(
                f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}",
                param="num_key_value_heads",
            )
        if head_dim % 2:
            raise BadCheckpoint(
                f"config.json: head_dim {head_dim} is odd; expected an even size", param="head_dim"
            )
        shape = cls(
            vocab=count(config, "vocab_size"),
            hidden=hidden,
            intermediate=count(config, "intermediate_size"),
            layers=count(config, "num_hidden_layers", most=MOST_LAYERS),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            eps=number(config, "rms_norm_eps"),
            act=str(act),
            tied=flag(config, "tie_word_embeddings", False),
            scale=head_dim**-0.5,
        )
        return replace(shape, **difference)
