"""Where the program keeps files of its own."""

import os
from pathlib import Path


def home() -> Path:
    """What is fetched and measured: $HEADRACE_HOME, else ~/.cache/headrace."""
    return Path(os.environ.get("HEADRACE_HOME") or "~/.cache/headrace").expanduser()
