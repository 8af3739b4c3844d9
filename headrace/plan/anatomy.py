"""What a decoder is made of, counted from its config.json: weights, KV cache and arithmetic of every layer."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.words import dtype_name
from headrace.nn.shape import MOST_HEADS, MOST_LAYERS, count, flag
from headrace.plan.layers import Attention, attention, views

PLAIN = (
    *("llama", "mistral", "ministral", "mixtral", "gemma2", "gemma3_text", "phi3", "gpt_oss", "glm4_moe"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "deepseek_v2", "deepseek_v3", "kimi_k2"),
)
"""Model types whose parts are known; any other is counted as a plain decoder, and the plan says so."""

TEXT = ("text_config", "llm_config", "language_config")
"""Where the decoder of a model of more than text is described."""

NEEDED = (
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
WIDTHS = ("intermediate_size", "moe_intermediate_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Layer(NamedTuple):
    """One block. Numbers of weights, except in `attention`."""

    attention: Attention
    linear: int
    """Matrices every token is multiplied with: projections, dense feed-forward, shared experts."""
    experts: int
    active: int
    expert: int
    """Weights of one expert, of which there are `experts`; a token takes `active` of them."""
    small: int
    """Norms, biases, routers, convolutions: never quantized, and not split over devices."""

    @property
    def weights(self) -> int:
        return self.linear + self.experts * self.expert + self.small


@dataclass(frozen=True)
class Anatomy:
    """A decoder: what it keeps, reads and multiplies. Counts are of elements; what a byte is, a scheme says."""

    name: str
    kind: str
    vocab: int
    hidden: int
    inner: int
    attended: int
    """Width of the queries over all heads."""
    tied: bool
    max_len: int
    layers: tuple[Layer, ...]
    dtype: str
    quantized: str | None
    """How the checkpoint's weights are quantized; None where they are not."""
    rotary: int
    """Elements per position of the tables of rotations, which are float32 and as long as the longest request."""
    heads: int
    notes: tuple[str, ...] = field(default=())

    @property
    def head(self) -> int:
        """Weights that make logits, whether or not they are the embedding's."""
        return self.vocab * self.hidden

    @cached_property
    def parameters(self) -> int:
        """All of them: embedding, head where it is one of its own, blocks, last norm."""
        return self.head * (1 if self.tied else 2) + sum(layer.weights for layer in self.layers) + self.hidden

    @cached_property
    def active(self) -> int:
        """Parameters that one token meets, embedding and head included, as model cards count them."""
        idle = sum((layer.experts - layer.active) * layer.expert for layer in self.layers)
        return self.parameters - idle

    @cached_property
    def linear(self) -> int:
        """Weights of matrices that all tokens meet, experts left out."""
        return sum(layer.linear for layer in self.layers)

    @cached_property
    def small(self) -> int:
        return self.hidden + sum(layer.small for layer in self.layers)

    @cached_property
    def routed(self) -> int:
        """Weights of all experts."""
        return sum(layer.experts * layer.expert for layer in self.layers)

    @cached_property
    def chosen(self) -> int:
        """Weights of the experts that one token takes."""
        return sum(layer.active * layer.expert for layer in self.layers)

    @cached_property
    def kinds(self) -> tuple[tuple[Attention, int], ...]:
        """Each kind of attention, and how many layers have it."""
        return tuple(Counter(layer.attention for layer in self.layers).items())

    @property
    def kv_per_token(self) -> int:
        """Elements that a token leaves behind in all layers that keep it for good or for a while."""
        return sum(kind.kv * layers for kind, layers in self.kinds)

    @property
    def windows(self) -> list[int | None]:
        """Of the layers with a KV cache, in order."""
        return [layer.attention.window for layer in self.layers if layer.attention.kv]


def dissect(name: str, config: dict[str, Any]) -> Anatomy:
    """The parts of the decoder that `config`, in the terms of a Hugging Face config.json, describes.

    Raises BadCheckpoint naming all keys that are missing, or the one that makes no sense; Refused for
    what is no decoder.
    """
    config, notes = _text(config)
    _check(config)
    kind = str(config["model_type"])
    if kind not in PLAIN:
        notes.append(f"model type {kind!r} is not known here; it is counted as a plain decoder by its sizes")
    hidden, layers = count(config, "hidden_size"), count(config, "num_hidden_layers", most=MOST_LAYERS)
    heads = count(config, "num_attention_heads", most=MOST_HEADS)
    seen = views(config, layers)
    parts = tuple(_layer(config, kind, attention(config, view), i) for i, view in enumerate(seen))
    attended = max(layer.attention.attended for layer in parts)
    tables = len({layer.attention.window is None for layer in parts}) if kind.startswith("gemma3") else 1
    return Anatomy(
        name=name,
        kind=kind,
        vocab=count(config, "vocab_size"),
        hidden=hidden,
        inner=count(config, _first(config, *WIDTHS) or WIDTHS[0]),
        attended=attended,
        tied=flag(config, "tie_word_embeddings", kind.startswith("gemma")),
        max_len=count(config, "max_position_embeddings"),
        layers=parts,
        dtype=_dtype(config),
        quantized=_quantized(config),
        rotary=tables * max(layer.attention.rotary for layer in parts),
        heads=heads,
        notes=tuple(notes),
    )


def _text(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The decoder's own settings, and what is to be said of the rest."""
    for key in TEXT:
        if isinstance(inner := config.get(key), dict):
            kept = {k: config[k] for k in ("quantization_config", "dtype", "torch_dtype") if k in config}
            return kept | inner, ["a model of more than text: only its decoder is counted"]
    return config, []


def _check(config: dict[str, Any]) -> None:
    if config.get("is_encoder_decoder"):
        raise Refused("config.json describes an encoder-decoder model; only decoders are planned")
    missing = [key for key in NEEDED if config.get(key) is None]
    if _first(config, *WIDTHS) is None:
        missing.append(WIDTHS[0])
    if missing:
        raise BadCheckpoint(
            f"config.json lacks {', '.join(missing)}",
            param=missing[0],
            hint="give the config.json that came with the model, in Hugging Face's terms",
        )


def _first(config: dict[str, Any], *keys: str) -> str | None:
    """The first of these keys that says something."""
    return next((key for key in keys if config.get(key) is not None), None)


def _layer(config: dict[str, Any], kind: str, seen: Attention, index: int) -> Layer:
    hidden = count(config, "hidden_size")
    norms = hidden * (4 if kind in ("gemma2", "gemma3_text") else 2)
    if not _routes(config, index):
        width = count(config, "intermediate_size")
        bias = 2 * width + hidden if flag(config, "mlp_bias", False) else 0
        return Layer(seen, seen.linear + 3 * hidden * width, 0, 0, 0, seen.small + norms + bias)
    experts = count(config, _first(config, *EXPERTS) or EXPERTS[0])
    active = count(config, _first(config, "num_experts_per_tok", "moe_topk") or "num_experts_per_tok")
    if active > experts:
        raise BadCheckpoint(
            f"config.json: {active} experts per token of {experts}", param="num_experts_per_tok"
        )
    width = count(config, _first(config, "moe_intermediate_size") or "intermediate_size")
    shared = gate = 0
    if config.get("shared_expert_intermediate_size"):
        shared, gate = count(config, "shared_expert_intermediate_size"), hidden
    elif config.get("n_shared_experts"):
        shared = count(config, "n_shared_experts") * width
    small = seen.small + norms + hidden * experts + gate
    if kind in ("deepseek_v3", "kimi_k2", "glm4_moe"):
        small += experts  # the correction of the router's scores
    if kind == "gpt_oss":
        small += experts * (1 + 2 * width + hidden)  # biases of the router and of the experts
    return Layer(seen, seen.linear + 3 * hidden * shared, experts, active, 3 * hidden * width, small)


def _routes(config: dict[str, Any], index: int) -> bool:
    """Whether a layer's feed-forward is made of experts."""
    if (key := _first(config, *EXPERTS)) is None or config[key] in (0, 1):
        return False
    if config.get("first_k_dense_replace"):
        return index >= count(config, "first_k_dense_replace")
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise BadCheckpoint(
            f"config.json: mlp_only_layers is {dense!r}; expected a list of layers", param="mlp_only_layers"
        )
    every = count(config, "decoder_sparse_step", 1)
    return index not in dense and (index + 1) % every == 0


def _dtype(config: dict[str, Any]) -> str:
    said = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return DTYPES.get(dtype_name(said), "bf16")


def _quantized(config: dict[str, Any]) -> str | None:
    """The scheme that a checkpoint's quantization_config amounts to. Raises Refused for one that is not known."""
    said = config.get("quantization_config")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise BadCheckpoint(f"config.json: quantization_config is {said!r}", param="quantization_config")
    method = str(said.get("quant_method") or said.get("quant_type") or "unknown").lower()
    if method in ("fp8", "fbgemm_fp8", "modelopt_fp8"):
        return "fp8"
    if method in ("mxfp4", "nvfp4"):
        return method
    if method in ("awq", "gptq", "compressed-tensors", "auto-round"):
        return _compressed(said)
    raise Refused(
        f"config.json: weights quantized with {method!r} are not known here",
        param="quantization_config",
        hint="say with --scheme what they amount to",
    )


def _compressed(said: dict[str, Any]) -> str:
    groups = said.get("config_groups")
    first = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    weights = first.get("weights") if isinstance(first, dict) else None
    weights = weights if isinstance(weights, dict) else {}
    bits = weights.get("num_bits", said.get("bits", said.get("w_bit", 4)))
    if bits == 4:
        return "nvfp4" if weights.get("type") == "float" else "w4a16"
    inputs = first.get("input_activations") if isinstance(first, dict) else None
    if not inputs:
        return "w8a16"
    return "fp8" if weights.get("type") == "float" else "int8"
