"""Which layers look through a sliding window, and how wide it is."""

from typing import Any

from headrace.base.errors import BadCheckpoint
from headrace.nn.shape import count

FULL, SLIDING = "full_attention", "sliding_attention"


def windows(config: dict[str, Any], layers: int) -> list[int | None]:
    """The window of each layer, None for full attention.

    A query at position p sees keys j with p - j < window. Raises BadCheckpoint for settings that make no sense.
    """
    types = layer_types(config, layers)
    window = count(config, "sliding_window") if SLIDING in types else None
    return [window if kind == SLIDING else None for kind in types]


def layer_types(config: dict[str, Any], layers: int, where: str = "config.json") -> list[str]:
    """FULL or SLIDING for each layer: as the configuration says, else by the architecture's rule."""
    given = config.get("layer_types")
    if given is None:
        return _by_rule(config, layers, where)
    types = given if isinstance(given, list) else [given]
    kinds = set(map(str, types))
    if types is not given or len(types) != layers or not kinds <= {FULL, SLIDING}:
        raise BadCheckpoint(
            f"{where} has {len(types)} layer_types ({', '.join(sorted(kinds))}) for {layers} layers",
            param="layer_types",
        )
    return types


def _by_rule(config: dict[str, Any], layers: int, where: str) -> list[str]:
    kind, width = config.get("model_type"), config.get("sliding_window")
    if kind == "gemma2":
        return [FULL if i % 2 else SLIDING for i in range(layers)]
    if kind == "gemma3_text":
        keys = ("sliding_window_pattern", "_sliding_window_pattern")
        every = next((config[key] for key in keys if config.get(key) is not None), 6)
        _check_whole(every, 1, keys[0], where)
        return [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    if kind == "mistral" and width is not None:
        return [SLIDING] * layers
    if config.get("use_sliding_window") and width is not None:  # qwen: the first layers see all
        first = 28 if config.get("max_window_layers") is None else config["max_window_layers"]
        _check_whole(first, 0, "max_window_layers", where)
        return [SLIDING if i >= first else FULL for i in range(layers)]
    return [FULL] * layers


def _check_whole(value: Any, least: int, key: str, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadCheckpoint(f"{where} has {key} {value!r}; a whole number was expected", param=key)
