"""Files that results are written to and read from: what goes wrong is said with the path and the flag that named it."""

from pathlib import Path

from headrace.base.errors import Refused


def write(path: Path, text: str, param: str = "output") -> None:
    """Raises Refused."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise Refused(f"{path} cannot be written: {fault.strerror}", param=param) from fault


def read(path: Path, param: str) -> bytes:
    """Raises Refused."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise Refused(f"{path} cannot be read: {fault.strerror}", param=param) from fault
