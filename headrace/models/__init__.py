"""One file per architecture: what differs from a plain decoder."""

import sys
from typing import Any

from headrace.base.discover import modules
from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.nn.decoder import Decoder


def handled() -> list[str]:
    """Every model_type that some file here handles, sorted."""
    return sorted(kind for module in modules(sys.modules[__name__]) for kind in module.HANDLES)


def build(config: dict[str, Any], max_len: int) -> Decoder:
    """The model that `config` (config.json terms, see checkpoint/config.py) describes, weights uninitialized.

    Sequences may be up to max_len tokens long. Raises UnknownName listing the known model types,
    BadCheckpoint naming the key for a config that is incomplete or makes no sense.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise BadCheckpoint(
            "config.json has no model_type; expected the name of an architecture", param="model_type"
        )
    for module in modules(sys.modules[__name__]):
        if kind in module.HANDLES:
            return module.build(config, max_len)
    raise UnknownName.among("model type", kind, handled(), param="model_type")
