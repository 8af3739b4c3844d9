"""Files that results are written to: what goes wrong is said with the path and the flag that named it."""

import os
from pathlib import Path

from headrace.base.errors import Refused


def check_writable(path: Path, param: str = "output") -> None:
    """To be asked before what takes long. Raises Refused."""
    folder = path.absolute().parent
    if path.is_dir():
        why = "it is a folder"
    elif not folder.is_dir():
        why = f"{path.parent} is no folder"
    elif not os.access(path if _special(path) else folder, os.W_OK):
        why = "you may not write there"
    else:
        return
    raise Refused(f"{path} cannot be written: {why}", param=param)


def write(path: Path, text: str, param: str = "output") -> None:
    """As a whole or not at all: a disk that is full leaves what was there before. Raises Refused."""
    fresh = path.parent / f".{path.name}.new"
    try:
        if _special(path):
            path.write_text(text, encoding="utf-8")
        else:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
    except OSError as fault:
        if fresh.is_file():
            fresh.unlink()
        raise Refused(f"{path} cannot be written: {fault.strerror}", param=param) from fault


def _special(path: Path) -> bool:
    """Whether it is a pipe or a device, which is written to and not replaced."""
    return path.exists() and not path.is_file()
