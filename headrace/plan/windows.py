"""What each layer sees, by its config: everything, a window, or a state that sums up all that was."""

from typing import Any, NamedTuple

from headrace.base.errors import BadCheckpoint
from headrace.nn.shape import count

FULL, SLIDING, CHUNKED, LINEAR = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "linear_attention",
)
ALL_SLIDE = frozenset({"mistral", "mixtral", "phi3", "ministral", "starcoder2"})
"""Model types all of whose layers have the window, if the config gives one."""


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
