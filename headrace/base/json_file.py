"""Configurations as files: one JSON object each."""

import json
from pathlib import Path
from typing import Any, cast

from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.base.text_file import endless

LARGEST_JSON = 1 << 24  # bytes


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises UnknownName if there is no file, BadCheckpoint if it holds anything else."""
    try:
        found = file.stat()
        if endless(found):
            raise BadCheckpoint(f"{file} is a pipe or a device; a regular file was expected")
        if found.st_size > LARGEST_JSON:
            raise BadCheckpoint(f"{file} has more than {LARGEST_JSON} bytes, too many to be a configuration")
        value: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnknownName(f"no file {file}", hint="a model folder has a config.json") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise BadCheckpoint(f"{file} cannot be read as JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{file} holds a {type(value).__name__}; a JSON object was expected")
    return cast(dict[str, Any], value)
