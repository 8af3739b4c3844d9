"""Which layers look through a sliding window, and how wide it is."""

from collections.abc import Callable
from typing import Any

from headrace.base.errors import BadCheckpoint
from headrace.nn.shape import count

FULL, SLIDING = "full_attention", "sliding_attention"


def windows(config: dict[str, Any], layers: int, slides: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer, None for full attention: from layer_types, else by the architecture's rule.

    A query at position p sees keys j with p - j < window. Raises BadCheckpoint for layer_types that make no
    sense.
    """
    types = config.get("layer_types")
    if types is None:
        types = [SLIDING if slides(i) else FULL for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(t not in (FULL, SLIDING) for t in types):
        raise BadCheckpoint(
            f"config.json: layer_types is {types!r}; expected {layers} times {FULL!r} or {SLIDING!r}",
            param="layer_types",
        )
    window = count(config, "sliding_window") if SLIDING in types else None
    return [window if kind == SLIDING else None for kind in types]
