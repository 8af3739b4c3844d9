"""A checkpoint's hyper-parameters in one form, whatever it was saved as.

The form is that of Hugging Face's config.json, made regular:

  model_type, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
  head_dim, vocab_size, max_position_embeddings   always there
  hidden_act           str; rms_norm_eps: float; tie_word_embeddings, attention_bias, mlp_bias: bool
  rope_theta           float
  rope_scaling         None, or a dict with "rope_type" (never "default") and what that type needs
  rope_local_base_freq None, or the base of the sliding layers where it differs (gemma3)
  rope_freq_factors    None, or one divisor per rotary frequency (GGUF files of llama 3)
  layer_types          "full_attention" or "sliding_attention" for each layer
  sliding_window       tokens; None where no layer slides
  eos_token_id         a list, generation_config.json's included; bos_token_id: int or None
  dtype                what the weights were saved in, or None
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json
from headrace.base.words import dtype_name
from headrace.checkpoint.gguf import Gguf, opened
from headrace.checkpoint.translate import translate_metadata
from headrace.nn.shape import MOST_LAYERS
from headrace.nn.windows import FULL, SLIDING, layer_types
from headrace.quant.formats import reader
from headrace.text.tokenizer import Tokenizer

NEEDED = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
# What transformers fills in where a file written by it says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8},
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256},
    "gemma3_text": {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 256},
}


def read_config(path: str | Path | Gguf) -> dict[str, Any]:
    """The hyper-parameters of a folder with config.json, of a config.json, or of a .gguf file, opened or not.

    Raises UnknownName if there is no such file, BadCheckpoint naming the fields that are missing or absurd,
    Refused for what is known and not supported (models of more than text, unknown ways of quantizing).
    """
    path = path if isinstance(path, Gguf) else opened(path)
    if isinstance(path, Gguf):
        return regular(translate_metadata(path), str(path.path))
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    beside = file.with_name("generation_config.json")
    generation = read_json(beside) if beside.is_file() else {}
    ends = _ids(config.get("eos_token_id"), file) | _ids(generation.get("eos_token_id"), beside)
    config["eos_token_id"] = ends
    return regular(config, str(file))


def read_tokenizer(path: str | Path | Gguf) -> Tokenizer:
    """The tokenizer that came with a checkpoint: from its folder, or from the metadata of a .gguf file."""
    path = path if isinstance(path, Gguf) else opened(path)
    if isinstance(path, Gguf):
        return Tokenizer.from_gguf(path.metadata)
    return Tokenizer.from_folder(path if path.is_dir() else path.parent)


# -- one form -----------------------------------------------------------------------------------------------


def regular(given: dict[str, Any], where: str) -> dict[str, Any]:
    """`given` in the form described at the top of this file; `where` it came from, for the error."""
    _refuse_strangers(given, where)
    config = DEFAULTS.get(str(given.get("model_type")), {}) | _rope(given, where)
    missing = [name for name in NEEDED if config.get(name) is None]
    if missing:
        raise BadCheckpoint(
            f"{where} (model type {given.get('model_type')!r}) lacks {', '.join(missing)}",
            hint="models of this type may not be supported, see README.md; or download or export the model again",
        )
    _check_counts(config, NEEDED[1:], where)
    if config["num_hidden_layers"] > MOST_LAYERS:
        raise BadCheckpoint(
            f"{where} has {config['num_hidden_layers']} layers; at most {MOST_LAYERS} are believed"
        )
    gemma = str(config["model_type"]).startswith("gemma")
    heads = config["num_attention_heads"]
    config.update(
        num_key_value_heads=_first(config.get("num_key_value_heads"), heads),
        rms_norm_eps=_first(config.get("rms_norm_eps"), 1e-6),
        tie_word_embeddings=bool(_first(config.get("tie_word_embeddings"), gemma)),
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        rope_freq_factors=config.get("rope_freq_factors"),
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=sorted(_ids(config.get("eos_token_id"), Path(where))),
        dtype=_dtype(config),
    )
    acts = ("gelu_pytorch_tanh", "hidden_activation") if gemma else ("silu", "hidden_act")
    config["hidden_act"] = config.get(acts[1]) or acts[0]
    config["head_dim"] = _first(config.get("head_dim"), config["hidden_size"] // heads)
    _check_counts(config, ("num_key_value_heads", "head_dim"), where)
    config["layer_types"] = layer_types(config, config["num_hidden_layers"], where)
    if SLIDING not in config["layer_types"]:
        config["sliding_window"] = None
    elif not _is_count(config.get("sliding_window")):
        raise BadCheckpoint(f"{where} has sliding layers and sliding_window {config.get('sliding_window')!r}")
    return config


def _refuse_strangers(config: dict[str, Any], where: str) -> None:
    parts = [key for key in ("vision_config", "audio_config", "text_config") if key in config]
    if parts:
        kind = config.get("model_type")
        raise Refused(
            f"{where} (model type {kind!r}) describes a model of more than text: {', '.join(parts)}",
            hint="take the text-only variant of the model, or a GGUF file of it",
        )
    if config.get("is_encoder_decoder"):
        raise Refused(f"{where} (model type {config.get('model_type')!r}) describes an encoder-decoder model")
    if quantization := config.get("quantization_config"):
        reader(quantization, where)  # refuses what it does not know


def _rope(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Both spellings of the rotary settings (rope_theta and rope_scaling, or rope_parameters) made one."""
    config = {key: value for key, value in given.items() if key != "rope_parameters"}
    parameters = given.get("rope_parameters")
    if isinstance(parameters, dict):
        sliding = parameters.get(SLIDING)
        if isinstance(sliding, dict):
            if _first(sliding.get("rope_type"), "default") != "default":
                raise Refused(f"{where} scales the rope of its sliding layers, which is not supported")
            config["rope_local_base_freq"] = sliding.get("rope_theta")
        full = parameters.get(FULL, {} if sliding else parameters)
        if not isinstance(full, dict):
            raise BadCheckpoint(f"{where} has rope_parameters {parameters!r}; settings were expected")
        config["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"}
        config["rope_theta"] = _first(full.get("rope_theta"), given.get("rope_theta"))
    config["rope_scaling"] = _scaling(config.get("rope_scaling"), where)
    family = DEFAULTS.get(str(given.get("model_type")), {})
    for key, default in (("rope_theta", 10000.0), ("rope_local_base_freq", None)):
        value = _first(config.get(key), family.get(key, default))
        if value is not None and not _is_positive(value):
            raise BadCheckpoint(f"{where} has {key} {value!r}; a positive number was expected")
        config[key] = value
    return config


def _scaling(given: Any, where: str) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise BadCheckpoint(f"{where} has rope_scaling {given!r}; an object was expected")
    names = ("type", "rope_type")
    scaling = {key: value for key, value in given.items() if key not in names and value is not None}
    kind = _first(given.get("rope_type"), given.get("type"), "default")
    if kind in ("default", "none"):
        return None
    return {"rope_type": kind, **scaling}


def _check_counts(config: dict[str, Any], names: Iterable[str], where: str) -> None:
    absurd = [f"{name} = {config.get(name)!r}" for name in names if not _is_count(config.get(name))]
    if absurd:
        raise BadCheckpoint(f"{where} has {', '.join(absurd)}; positive whole numbers were expected")


def _ids(given: Any, where: Path) -> set[int]:
    ids = [] if given is None else list(given) if isinstance(given, list | set) else [given]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise BadCheckpoint(f"{where} has eos_token_id {given!r}; token ids were expected")
    return set(ids)


def _dtype(config: dict[str, Any]) -> str | None:
    given = _first(config.get("dtype"), config.get("torch_dtype"))
    return dtype_name(given) if given is not None else None


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
