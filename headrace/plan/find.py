"""The config.json of a model: from a folder, a file, the hub, or the table of known shapes. Nothing else is read."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.checkpoint.huggingface import Reference, fetch_config
from headrace.plan.known import KNOWN

LARGEST = 1 << 24  # bytes of a config.json that is believed


def settings(model: str) -> dict[str, Any]:
    """What config.json says of `model`: a known shape, a folder, a .json file, or a repository on the hub.

    Raises UnknownName for what is not there, BadCheckpoint for what is no configuration, Unreachable.
    """
    if model.lower() in KNOWN:
        return KNOWN[model.lower()]
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.is_file() or path.suffix == ".json":
        return _read(path)
    reference = Reference.parse(model)
    if reference is None or (path.parent.is_dir() and str(path.parent) != "."):
        raise _unknown(model)
    return _read(fetch_config(reference))


def _unknown(model: str) -> UnknownName:
    near = get_close_matches(model.lower(), list(KNOWN), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownName(
        f"unknown model {model!r}",
        param="model",
        hint=f"{hint}give a folder with config.json, a config.json, org/name of the hub, or one of:"
        f" {', '.join(sorted(KNOWN))}",
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST:
            raise BadCheckpoint(f"{file} is too large to be a configuration")
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnknownName(f"no file {file}", hint="a model folder has a config.json") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise BadCheckpoint(f"{file} cannot be read as JSON: {fault}") from fault
    if not isinstance(said, dict):
        raise BadCheckpoint(f"{file} holds a {type(said).__name__}; a JSON object was expected")
    return said
