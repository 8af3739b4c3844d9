"""Files that people name to be read: whole, so they must have an end, and one that memory has room for."""

from os import stat_result
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from headrace.base.errors import Refused
from headrace.base.home import expanded

LARGEST = 1 << 30
"""Bytes."""


def read_text(path: str | Path, param: str, hint: str | None = None, first: int = -1) -> str:
    """The text of a regular file in UTF-8, or its first so many characters, for which it may have any size.

    Raises Refused, `param` being the setting that named it and `hint` what may be given there.
    """
    path = expanded(path)
    check(path, param, hint, LARGEST if first < 0 else None)
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(first)
    except OSError as fault:
        raise _unreadable(path, str(fault.strerror), param, hint) from fault
    except UnicodeDecodeError as fault:
        raise _unreadable(path, f"it is not UTF-8 ({fault.reason})", param, hint) from fault


def read_bytes(path: str | Path, param: str, hint: str | None = None) -> bytes:
    """As `read_text`, before decoding."""
    path = expanded(path)
    check(path, param, hint, LARGEST)
    try:
        return path.read_bytes()
    except OSError as fault:
        raise _unreadable(path, str(fault.strerror), param, hint) from fault


def check(path: Path, param: str, hint: str | None = None, most: int | None = None) -> None:
    """Raise Refused for a pipe or a device, and for a file of more than `most` bytes; not where nothing is."""
    try:
        found = path.stat()
    except OSError:
        return
    if endless(found):
        why = "it is a pipe or a device; expected a regular file"
        raise _unreadable(path, why, param, hint or "write what it gives to a file, and give that one")
    if most is not None and found.st_size > most:
        why = f"it has {found.st_size:,} bytes; expected at most {most:,}"
        raise _unreadable(path, why, param, hint or "give a part of it")


def endless(found: stat_result) -> bool:
    """Whether it is a pipe or a device, which may have no end."""
    return not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode))


def _unreadable(path: Path, why: str, param: str, hint: str | None) -> Refused:
    return Refused(f"{path} cannot be read: {why}", param=param, hint=hint)
