"""What one layer's attention sees, weighs, keeps and computes: grouped heads, a latent, or a recurrent state."""

from typing import Any, NamedTuple

from headrace.base.errors import BadCheckpoint
from headrace.nn.shape import MOST_HEADS, count, flag
from headrace.nn.windows import FULL, SLIDING

CHUNKED, LINEAR = "chunked_attention", "linear_attention"
ALL_SLIDE = frozenset({"mistral", "mixtral", "phi3", "ministral", "starcoder2"})
"""Model types all of whose layers have the window, if the config gives one."""


class Attention(NamedTuple):
    """One layer's attention. Numbers of elements, of weights, or of multiply-adds."""

    split: int
    """Over how many devices the cache can be divided: KV heads. A latent is kept whole by each (1)."""
    linear: int
    small: int
    attended: int
    rotary: int = 0
    window: int | None = None
    kv: int = 0
    """Elements kept per token; 0 where a state is kept instead."""
    state: int = 0
    """Bytes kept per sequence, however long it is."""
    score: int = 0
    """Multiply-adds per query and key of a prompt: scores, then values."""
    lookup: int = 0
    """The same for a token to be generated, which may attend in the latent's own space."""
    update: int = 0
    """Multiply-adds per token to bring a state up to date and read it."""


def attention(config: dict[str, Any], view: "View") -> Attention:
    """What `config` says of a layer that sees `view`. Raises BadCheckpoint naming the key."""
    if view.linear:
        return _recurrent(config)
    return _latent(config) if config.get("kv_lora_rank") else _grouped(config, view.window)


def _grouped(config: dict[str, Any], window: int | None) -> Attention:
    """Grouped-query attention: several query heads to each head of keys and values (Ainslie et al., 2023)."""
    kind, hidden = str(config["model_type"]), count(config, "hidden_size")
    heads = count(config, "num_attention_heads", most=MOST_HEADS)
    kv_heads = count(config, "num_key_value_heads", 8 if kind == "mistral" else heads, most=MOST_HEADS)
    if heads % kv_heads:
        raise BadCheckpoint(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}",
            param="num_key_value_heads",
        )
    size = count(config, "head_dim", max(1, hidden // heads), most=MOST_HEADS)
    q, kv = heads * size, kv_heads * size
    gated = 2 if kind == "qwen3_next" else 1  # as many numbers again gate the output
    small = 0
    if kind in ("qwen2", "qwen2_moe"):
        small += q + 2 * kv
    elif flag(config, "attention_bias", kind == "gpt_oss"):
        small += q + 2 * kv + hidden
    if kind.startswith("qwen3") or kind == "gemma3_text" or config.get("use_qk_norm"):
        small += 2 * size
    if kind == "gpt_oss":
        small += heads  # the sinks
    return Attention(
        window=window,
        kv=2 * kv,
        split=kv_heads,
        linear=hidden * (gated * q + 2 * kv) + q * hidden,
        small=small,
        score=2 * q,
        lookup=2 * q,
        attended=q,
        rotary=size,
    )


def _latent(config: dict[str, Any]) -> Attention:
    """Multi-head latent attention: one compressed vector per token for all heads (DeepSeek-V2, section 2.1)."""
    hidden, heads = count(config, "hidden_size"), count(config, "num_attention_heads", most=MOST_HEADS)
    rank, rope = count(config, "kv_lora_rank"), count(config, "qk_rope_head_dim")
    plain, value = count(config, "qk_nope_head_dim"), count(config, "v_head_dim")
    wide = heads * (plain + rope)
    if config.get("q_lora_rank") is None:
        queries, norms = hidden * wide, rank
    else:
        low = count(config, "q_lora_rank")
        queries, norms = hidden * low + low * wide, rank + low
    keys = hidden * (rank + rope) + rank * heads * (plain + value)
    return Attention(
        kv=rank + rope,
        split=1,
        linear=queries + keys + heads * value * hidden,
        small=norms,
        score=heads * (plain + rope + value),
        lookup=heads * (2 * rank + rope),
        attended=wide,
        rotary=rope,
    )


def _recurrent(config: dict[str, Any]) -> Attention:
    """Gated delta rule: a matrix per head, updated by each token (Yang et al., 2024; Qwen3-Next)."""
    hidden = count(config, "hidden_size")
    keys, key = count(config, "linear_num_key_heads"), count(config, "linear_key_head_dim")
    values, value = count(config, "linear_num_value_heads"), count(config, "linear_value_head_dim")
    kernel = count(config, "linear_conv_kernel_dim")
    mixed = 2 * keys * key + values * value  # q, k and v go through a short convolution
    out = values * value
    return Attention(
        split=keys,
        state=4 * values * key * value + 2 * mixed * (kernel - 1),  # the matrix in float32
        linear=hidden * (mixed + out) + hidden * 2 * values + out * hidden,
        small=mixed * kernel + 2 * values + value,
        update=4 * values * key * value,
        attended=out,
    )


# -- what a layer sees, by its config: everything, a window, or a state that sums up all that was ----------------


class View(NamedTuple):
    """`linear`: a recurrent state instead of a KV cache. `window`: keys a query sees, itself included."""

    window: int | None
    linear: bool = False


def views(config: dict[str, Any], layers: int) -> list[View]:
    """Of every layer: from layer_types where it is given, else by the rule of the model type.

    Raises BadCheckpoint for layer_types that make no sense.
    """
    types = config.get("layer_types")
    if types is None:
        types = [_rule(config, i) for i in range(layers)]
    known = {FULL, SLIDING, CHUNKED, LINEAR}
    if not isinstance(types, list) or len(types) != layers or not set(map(str, types)) <= known:
        raise BadCheckpoint(
            f"config.json: layer_types does not say for each of {layers} layers one of {', '.join(sorted(known))}",
            param="layer_types",
        )
    return [_view(config, str(kind)) for kind in types]


def _view(config: dict[str, Any], kind: str) -> View:
    if kind == SLIDING:
        return View(count(config, "sliding_window"))
    if kind == CHUNKED:
        return View(count(config, "attention_chunk_size"))
    return View(None, kind == LINEAR)


def _rule(config: dict[str, Any], index: int) -> str:
    """What the model type makes of a layer whose config says nothing about it."""
    kind = str(config["model_type"])
    if kind == "qwen3_next":
        return LINEAR if (index + 1) % count(config, "full_attention_interval", 4) else FULL
    if config.get("sliding_window") is None:
        return FULL
    if kind in ("gemma2", "gpt_oss"):
        return FULL if index % 2 else SLIDING
    if kind in ("gemma3_text", "cohere2"):
        every = count(config, "sliding_window_pattern", 6 if kind == "gemma3_text" else 4)
        return SLIDING if (index + 1) % every else FULL
    if kind in ALL_SLIDE:
        return SLIDING
    if config.get("use_sliding_window"):  # qwen: the first layers see all
        first = count(config, "max_window_layers", 28) if config.get("max_window_layers") != 0 else 0
        return SLIDING if index >= first else FULL
    return FULL
