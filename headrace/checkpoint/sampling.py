"""How a model's makers recommend that it be sampled from: in generation_config.json, in a GGUF file, or by its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.base.json_file import read_json
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.hub import SAMPLING

PREFIX = "general.sampling."
KEYS = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Name in generation_config.json -> key in GGUF, as llama.cpp has them since https://github.com/ggml-org/llama.cpp/pull/17120."""
MOST = 1e9


def recommended(checkpoint: Path | Gguf, name: str = "") -> dict[str, Any]:
    """Values by the names of KEYS: those of a folder or GGUF file, else of a model known by `name`; none is checked.

    Raises BadCheckpoint for a generation_config.json that is not JSON.
    """
    if isinstance(checkpoint, Gguf):
        said = {ours: checkpoint.metadata.get(PREFIX + key) for ours, key in KEYS.items()}
        return _numbers(said) or SAMPLING.get(name, {})
    file = checkpoint / "generation_config.json"
    if not file.is_file():
        return SAMPLING.get(name, {})
    said = read_json(file)
    greedy = {"temperature": 0.0} if said.get("do_sample") is False else {}
    return _numbers({ours: said.get(ours) for ours in KEYS}) | greedy


def as_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Such values by the keys of a GGUF file."""
    return {PREFIX + KEYS[name]: value for name, value in values.items()}


def _numbers(said: Mapping[str, Any]) -> dict[str, Any]:
    """What is a number, in the digits that 32 bits keep: 0.95 is 0.949999988 in a file."""
    found: dict[str, Any] = {}
    for name, value in said.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST:
            found[name] = int(value) if name == "top_k" else float(f"{value:.7g}")
    return found
