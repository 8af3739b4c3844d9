"""The config.json of a model: from a folder, a file, the hub, or the table of known shapes. Nothing else is read."""

from difflib import get_close_matches
from typing import Any

from headrace.base.errors import UnknownName
from headrace.base.home import expanded
from headrace.base.json_file import read_json
from headrace.checkpoint.huggingface import Reference, fetch_config
from headrace.plan.known import KNOWN


def settings(model: str) -> dict[str, Any]:
    """What config.json says of `model`: a known shape, a folder, a .json file, or a repository on the hub.

    Raises UnknownName for what is not there, BadCheckpoint for what is no configuration, Unreachable.
    """
    if model.lower() in KNOWN:
        return KNOWN[model.lower()]
    path = expanded(model)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file() or path.suffix == ".json":
        return read_json(path)
    reference = Reference.parse(model)
    if reference is None or (path.parent.is_dir() and str(path.parent) != "."):
        near = get_close_matches(model.lower(), list(KNOWN), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownName(
            f"unknown model {model!r}",
            param="model",
            hint=f"{hint}give a folder with config.json, a config.json, org/name of the hub, or one of:"
            f" {', '.join(sorted(KNOWN))}",
        )
    return read_json(fetch_config(reference))
