"""Other people's quantized checkpoints, one file per dialect: their config and tensors become our schemes."""

import sys
from typing import Any

from headrace.base.discover import modules
from headrace.base.errors import BadCheckpoint, Refused
from headrace.quant.formats.layer import Reader


def methods() -> list[str]:
    """Every quant_method that some file here reads, sorted."""
    return sorted(name for module in modules(sys.modules[__name__]) for name in _methods(module))


def reader(quantization: Any, where: str) -> Reader:
    """What reads the layers that a config.json's quantization_config describes; `where` it is, for messages.

    Raises Refused for a method that is not known, BadCheckpoint for a config that makes no sense.
    """
    if not isinstance(quantization, dict):
        raise BadCheckpoint(f"{where} has quantization_config {quantization!r}; an object was expected")
    method = quantization.get(
        "quant_method", "compressed-tensors" if "config_groups" in quantization else None
    )
    for module in modules(sys.modules[__name__]):
        if method in _methods(module):
            return module.read(quantization, where)
    raise Refused(
        f"{where} describes weights quantized with {method!r}, which is not supported",
        hint=f"known are {', '.join(methods())}; take another copy of the model, or a GGUF file of it",
    )


def _methods(module: Any) -> tuple[str, ...]:
    return vars(module).get("METHODS", ())
