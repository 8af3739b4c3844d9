"""Where the program keeps files of its own."""

import os
from pathlib import Path


def home() -> Path:
    """What is fetched and measured: $HEADRACE_HOME, else ~/.cache/headrace."""
    return Path(os.environ.get("HEADRACE_HOME") or "~/.cache/headrace").expanduser()


def expanded(path: str | Path) -> Path:
    """With ~ as somebody's home; as it is where there is no such person."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
