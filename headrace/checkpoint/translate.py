"""GGUF's words for hyper-parameters and tensors, in Hugging Face's."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.gguf import Gguf
from headrace.nn.windows import FULL, SLIDING
from headrace.quant.ggml import dequantize

TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SANDWICHED = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"
NOT_WEIGHTS = frozenset({ROPE_FACTORS})
FILE_DTYPES = {"0": "float32", "1": "float16", "32": "bfloat16"}
"""By general.file_type, where nothing is quantized."""
# Depth of the two models whose scale is the width of a head by the book and not head_dim.
BY_THE_BOOK = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True, slots=True)
class Family:
    """How llama.cpp's converter changed an architecture on the way into a GGUF file."""

    model_type: str
    permuted: bool = False  # rows of q and k lie in interleaved rotary order
    shifted_norms: bool = False  # norm weights have 1 added
    sandwiched: bool = False  # norms before and after attention and mlp


FAMILIES = {
    "llama": Family("llama", permuted=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", shifted_norms=True, sandwiched=True),
    "gemma3": Family("gemma3_text", shifted_norms=True, sandwiched=True),
}


def family_of(gguf: Gguf) -> Family:
    """Raises UnknownName for an architecture that is not in the list, BadCheckpoint if none is named."""
    name = gguf.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise BadCheckpoint(f"{gguf.path} lacks general.architecture")
    if name not in FAMILIES:
        raise UnknownName.among("GGUF architecture", name, list(FAMILIES))
    return FAMILIES[name]


def hf_name(name: str, family: Family) -> str:
    """A tensor's name as Hugging Face has it; a name that is not known stays as it is."""
    if name in TENSORS:
        return TENSORS[name]
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, what = match.groups()
        table = IN_BLOCK | SANDWICHED if family.sandwiched else IN_BLOCK
        if part in table:
            return f"model.layers.{layer}.{table[part]}.{what}"
    return name


def translate_metadata(gguf: Gguf) -> dict[str, Any]:
    """The hyper-parameters in the terms of config.json; what is missing is left out."""
    family, arch = family_of(gguf), gguf.metadata["general.architecture"]
    get = _reader(gguf, arch)
    if (experts := get("expert_count", int)) and experts > 0:
        raise Refused(f"{gguf.path} is a mixture of {experts} experts, which is not supported")
    heads = get("attention.head_count", int)
    config = {
        "model_type": family.model_type,
        "hidden_size": get("embedding_length", int),
        "intermediate_size": get("feed_forward_length", int),
        "num_hidden_layers": get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int) or heads,
        "head_dim": get("attention.key_length", int),
        "vocab_size": _vocabulary(gguf, get("vocab_size", int)),
        "max_position_embeddings": get("context_length", int),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", float),
        "rope_theta": get("rope.freq_base", float),
        "rope_local_base_freq": get("rope.freq_base_swa", float),
        "rope_scaling": _scaling(get, gguf),
        "rope_freq_factors": _rope_factors(gguf),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.tensors,
        "attn_logit_softcapping": get("attn_logit_softcapping", float),
        "final_logit_softcapping": get("final_logit_softcapping", float),
        "dtype": FILE_DTYPES.get(str(gguf.metadata.get("general.file_type"))),
        **_token_ids(gguf),
    }
    if (width := get("attention.value_length", int)) and config["head_dim"] and width != config["head_dim"]:
        raise Refused(f"{gguf.path} has values of another width than its keys, which is not supported")
    _add_rotary_share(config, get("rope.dimension_count", int))
    _add_windows(config, get, gguf)
    _add_scale(config, get, arch)
    return {key: value for key, value in config.items() if value is not None}


Reader = Callable[[str, type], Any]


def _reader(gguf: Gguf, arch: str) -> Reader:
    """From (key, type) to the value or None; a list of equal values, one per layer, counts as one."""

    def get(key: str, kind: type) -> Any:
        value = gguf.metadata.get(f"{arch}.{key}")
        if isinstance(value, list):
            if len(set(map(str, value))) != 1:
                raise Refused(f"{gguf.path} has a different {key} for each layer, which is not supported")
            value = value[0]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise BadCheckpoint(f"{gguf.path} has {arch}.{key} = {value!r}; a {kind.__name__} was expected")
        return kind(value)

    return get


def _vocabulary(gguf: Gguf, stated: int | None) -> int | None:
    """The rows of the embedding; the list of tokens may be shorter, the stated number is often missing."""
    if entry := gguf.tensors.get("token_embd.weight"):
        return entry.shape[0]
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    return stated or (len(tokens) if isinstance(tokens, list) else None)


def _token_ids(gguf: Gguf) -> dict[str, Any]:
    def get(name: str) -> int | None:
        value = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and value < 1 << 31 else None  # -1 as u32: "there is none"

    ends = [i for i in (get("eos"), get("eot"), get("eom")) if i is not None and i >= 0]
    return {"bos_token_id": get("bos"), "pad_token_id": get("padding"), "eos_token_id": ends}


def _scaling(get: Reader, gguf: Gguf) -> dict[str, Any] | None:
    kind = gguf.metadata.get(f"{gguf.metadata['general.architecture']}.rope.scaling.type")
    factor = get("rope.scaling.factor", float) or get("rope.scale_linear", float)
    if kind is None:
        kind = "linear" if factor and factor != 1 else "none"
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    scaling = {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": get("rope.scaling.original_context_length", int),
    }
    if kind == "yarn":
        scaling["beta_fast"] = get("rope.scaling.yarn_beta_fast", float)
        scaling["beta_slow"] = get("rope.scaling.yarn_beta_slow", float)
        own = get("rope.scaling.attn_factor", float) or get("rope.scaling.yarn_attn_factor", float)
        if own and own != 1 and factor and factor > 0:  # the file's comes on top of the usual one
            scaling["attention_factor"] = own * (0.1 * log(factor) + 1)
    return {key: value for key, value in scaling.items() if value is not None}


def _rope_factors(gguf: Gguf) -> list[float] | None:
    if any(name.startswith("rope_factors_") for name in gguf.tensors):
        raise Refused(f"{gguf.path} scales its rotary embedding by 'longrope', which is not supported")
    entry = gguf.tensors.get(ROPE_FACTORS)
    if entry is None:
        return None
    factors = dequantize(gguf.raw(ROPE_FACTORS), entry.type, entry.shape)
    if factors.dim() != 1 or not (factors.isfinite() & (factors > 0)).all():
        raise BadCheckpoint(f"{gguf.path} has a broken {ROPE_FACTORS}; positive numbers were expected")
    return factors.tolist()


def _add_rotary_share(config: dict[str, Any], rotary: int | None) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config["head_dim"] or (hidden // heads if heads and hidden else None)
    if rotary and width and rotary != width:
        config["partial_rotary_factor"] = rotary / width


def _add_windows(config: dict[str, Any], get: Reader, gguf: Gguf) -> None:
    arch, window = gguf.metadata["general.architecture"], get("attention.sliding_window", int)
    if not window or arch.startswith("qwen"):  # qwen's window is stated and not used
        return
    config["sliding_window"] = window
    if arch == "llama":
        config["model_type"] = "mistral"
    pattern = gguf.metadata.get(f"{arch}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        config["layer_types"] = [SLIDING if slides else FULL for slides in pattern]
    elif isinstance(pattern, int):
        config["sliding_window_pattern"] = pattern


def _add_scale(config: dict[str, Any], get: Reader, arch: str) -> None:
    """Gemma divides its scores by the root of this; the file rarely says so."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if not arch.startswith("gemma") or not heads or not hidden:
        return
    book = config["num_hidden_layers"] == BY_THE_BOOK[arch]
    config["query_pre_attn_scalar"] = hidden // heads if book else config["head_dim"] or hidden // heads
    if scale := get("attention.scale", float):
        config["query_pre_attn_scalar"] = (1 / scale) * (1 / scale)  # infinite where a power would raise
