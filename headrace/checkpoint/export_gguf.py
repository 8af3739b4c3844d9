"""A model as one GGUF file in 8 or 4 bits, as llama.cpp's converter would lay it out."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.config import read_config, read_tokenizer
from headrace.checkpoint.load import HEAD, GgufSource, Source, open_source, weights_of
from headrace.checkpoint.sampling import as_keys, recommended
from headrace.checkpoint.translate import FAMILIES, IN_BLOCK, ROPE_FACTORS, TENSORS
from headrace.checkpoint.write_gguf import Progress, Written, write_gguf
from headrace.nn.rope import Rope
from headrace.nn.windows import FULL, SLIDING
from headrace.quant.ggml import KINDS
from headrace.quant.ggml_pack import quantize
from headrace.text.metadata import metadata_of

FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # general.file_type
SCHEMES = tuple(FILE_TYPES)
LAYOUT = 2  # general.quantization_version
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> architecture. Gemma's norms are changed on the way, which is not done here."""
EMBEDDING = "model.embed_tokens.weight"
FINEST = "Q8_0"
"""What the output head has, and an embedding that is the head, too: 4 bits would cost more there than anywhere."""
REST = "F16"
"""What matrices have whose rows are not whole blocks."""


def export_gguf(
    model: str | Path,
    path: str | Path,
    scheme: str = "q8_0",
    progress: Progress | None = None,
    name: str = "",
) -> None:
    """Write the model in a folder or .gguf file as a .gguf file whose matrices are in `scheme`.

    Weights that are in that scheme already are taken as they are; one tensor is held at a time. `name`: by which its
    recommended sampling may be known where its files say nothing. Raises UnknownName for another scheme or
    architecture, Refused for what the format or its readers have no words for and where the file is there already,
    BadCheckpoint where tensors are missing.
    """
    if scheme not in FILE_TYPES:
        raise UnknownName.among("scheme for GGUF", scheme, list(SCHEMES), param="scheme")
    path, model = Path(path), Path(model)
    if path.suffix != ".gguf":
        raise Refused(f"{path} does not end in .gguf, by which such files are known", param="output")
    config = read_config(model)
    _check_config(config)
    source = open_source(model)
    tensors = list(_tensors(config, scheme, source))
    said = recommended(source.gguf if isinstance(source, GgufSource) else model, name)
    metadata = {
        **_hyper_parameters(config, scheme, model, source),
        **as_keys(said),
        **_vocabulary(config, model, source),
    }
    write_gguf(path, metadata, tensors, progress)


def _check_config(config: dict[str, Any]) -> None:
    """Raises what export_gguf does for models that a file would not describe, or that its readers would get wrong."""
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        raise UnknownName.among("architecture for GGUF", kind, list(ARCHITECTURES), param="model_type")
    slides = SLIDING in config["layer_types"]
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    divisors = config["rope_freq_factors"] or scaling["rope_type"] == "llama3"
    faults = [
        (slides and kind != "mistral", "attends through a window, which readers of such files ignore"),
        (slides and FULL in config["layer_types"], "has windows on some of its layers"),
        (kind == "qwen3" and config["attention_bias"], "has biases in its attention"),
        (
            kind == "qwen2" and config["num_attention_heads"] * config["head_dim"] != config["hidden_size"],
            "has heads that are together not as wide as its hidden state",
        ),
        (config["hidden_act"] not in ("silu", "swish"), f"has the activation {config['hidden_act']}"),
        ((config.get("partial_rotary_factor") or 1) != 1, "rotates a part of each head"),
        (divisors and ARCHITECTURES[kind] != "llama", "divides the frequencies of its rotary embedding"),
        (
            scaling["rope_type"] not in ("default", "linear", "yarn", "llama3"),
            f"scales its rotary embedding by {scaling['rope_type']!r}",
        ),
        (scaling.get("truncate") is False, "does not round the borders of its YaRN scaling"),
    ]
    for fault, words in faults:
        if fault:
            raise Refused(
                f"this {kind} model {words}; GGUF has no words for that", param="model",
                hint="serve the folder as it is, or quantize it with `headrace optimize`",
            )  # fmt: skip


def _hyper_parameters(config: dict[str, Any], scheme: str, model: Path, source: Source) -> dict[str, Any]:
    arch = ARCHITECTURES[config["model_type"]]
    name = source.gguf.metadata.get("general.name") if isinstance(source, GgufSource) else None
    own = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": float(config["rope_theta"]),
        **_scaling(config),
    }
    if config["sliding_window"]:
        own["attention.sliding_window"] = config["sliding_window"]
    return {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": name if isinstance(name, str) else model.resolve().name.removesuffix(".gguf"),
        "general.file_type": FILE_TYPES[scheme],
        "general.quantization_version": LAYOUT,
        **{f"{arch}.{key}": value for key, value in own.items()},
    }


def _scaling(config: dict[str, Any]) -> dict[str, Any]:
    """Of the rotary embedding; that of llama 3 is a tensor of divisors instead."""
    scaling = config["rope_scaling"] or {}
    kind = scaling.get("rope_type")
    if kind not in ("linear", "yarn"):
        return {}
    trained = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = scaling.get("factor") or config["max_position_embeddings"] / trained
    made: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": float(factor)}
    if kind == "yarn":
        made["rope.scaling.original_context_length"] = trained
        made |= {
            f"rope.scaling.yarn_{key}": float(scaling[key])
            for key in ("beta_fast", "beta_slow")
            if scaling.get(key) is not None
        }
        # The file's comes on top of the usual one.
        usual = Rope(
            config["head_dim"], config["rope_theta"], {"rope_type": "yarn", "factor": factor}, 1, trained
        )
        found = Rope.of(config, config["head_dim"], 1).attention_factor / usual.attention_factor
        if abs(found - 1) > 1e-6:
            made["rope.scaling.attn_factor"] = found
    return made


def _vocabulary(config: dict[str, Any], model: Path, source: Source) -> dict[str, Any]:
    if isinstance(source, GgufSource):
        return {key: value for key, value in source.gguf.metadata.items() if key.startswith("tokenizer.")}
    return metadata_of(read_tokenizer(model), config["vocab_size"])


# -- tensors --------------------------------------------------------------------------------------------------


def _names(config: dict[str, Any], source: Source) -> dict[str, str]:
    """Name in the file -> Hugging Face's, in the order of the file.

    Raises BadCheckpoint for tensors that are missing or that are not known.
    """
    there = weights_of(source)
    names = dict(TENSORS)
    if config["tie_word_embeddings"]:
        there -= {HEAD}
        names = {ours: name for ours, name in names.items() if name != HEAD}
    normed = config["model_type"] == "qwen3"
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in IN_BLOCK.items():
            if normed or not ours.endswith(("q_norm", "k_norm")):
                names[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
            if (bias := f"model.layers.{layer}.{theirs}.bias") in there:
                names[f"blk.{layer}.{ours}.bias"] = bias
    faults = {
        "lacks": sorted(set(names.values()) - there),
        "has, unknown here,": sorted(there - set(names.values())),
    }
    for words, found in faults.items():
        if found:
            some = ", ".join(found[:5])
            raise BadCheckpoint(f"{source.path} {words} {len(found)} of a model's tensors: {some}")
    return names


def _tensors(config: dict[str, Any], scheme: str, source: Source) -> Iterator[Written]:
    permuted = FAMILIES[ARCHITECTURES[config["model_type"]]].permuted
    for ours, name in _names(config, source).items():
        shape = source.shape(name)
        heads = _heads(config, name) if permuted else None
        if heads is not None and shape[0] != heads * config["head_dim"]:
            raise BadCheckpoint(f"{source.path}: {name} has {shape[0]} rows, not those of {heads} heads")
        kind = _kind(config, scheme, name, shape)
        yield Written(ours, kind, shape, partial(_packed, source, name, kind, heads))
    if (divisors := _divisors(config)) is not None:
        yield Written(ROPE_FACTORS, "F32", tuple(divisors.shape), divisors.clone)


def _kind(config: dict[str, Any], scheme: str, name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "F32"
    finest = name == HEAD or (name == EMBEDDING and config["tie_word_embeddings"])
    kind = FINEST if finest else scheme.upper()
    return REST if shape[1] % KINDS[kind].elements else kind


def _packed(source: Source, name: str, kind: str, heads: int | None) -> Tensor:
    """A tensor's bytes: those the checkpoint has where it is of that kind, else rounded anew."""
    found = source.packed(name)
    if found is not None and found[0].name == kind.lower():
        return _permuted(found[1]["weight"], heads)
    tensor = _permuted(source.read(name), heads)
    if kind == "F32":
        return tensor.to("cpu", torch.float32)
    if kind == REST:
        return tensor.to("cpu", torch.float16)
    return quantize(tensor.to("cpu", torch.float32), kind)


def _heads(config: dict[str, Any], name: str) -> int | None:
    """How many heads the rows of a tensor are that lie in another order in the file; None for all others."""
    match = re.search(r"\.self_attn\.([qk])_proj\.", name)
    if match is None:
        return None
    return config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]


def _permuted(tensor: Tensor, heads: int | None) -> Tensor:
    """Rows of each head from (half, pair) to (pair, half) order, as the format wants them for llama."""
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _divisors(config: dict[str, Any]) -> Tensor | None:
    """Of the rotary frequencies, where there are any: float32 [head_dim / 2]."""
    scaling = config["rope_scaling"] or {}
    if not config["rope_freq_factors"] and scaling.get("rope_type") != "llama3":
        return None
    scaled = Rope.of(config, config["head_dim"], 1)
    plain = Rope(config["head_dim"], config["rope_theta"], None, 1, config["max_position_embeddings"])
    return plain.frequencies / scaled.frequencies
