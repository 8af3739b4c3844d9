"""The two files of a batch: request lines read one at a time, answer lines appended whole."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from headrace.base.errors import Refused
from headrace.base.text_file import check

SYNC_EVERY = 1.0
"""Seconds between two times that answers are forced onto the disk."""


class Line(NamedTuple):
    """A line of the input. `id` names it by its number; `custom_id` None and `wrong` set where it cannot be used."""

    id: str
    custom_id: str | None
    method: Any = None
    url: Any = None
    body: Any = None
    wrong: Refused | None = None

    @property
    def name(self) -> tuple[str, str]:
        """By which its answer is known."""
        return ("id", self.id) if self.custom_id is None else ("custom_id", self.custom_id)


def read(path: Path) -> Iterator[Line]:
    """The lines of a batch file; blank ones are left out. Raises Refused if the file cannot be read."""
    first: dict[str, int] = {}
    for number, raw in _raw(path):
        yield _parsed(raw, number, first)


def count(path: Path) -> int:
    """How many lines `read` gives. Raises Refused if the file cannot be read."""
    return sum(1 for _ in _raw(path))


def _raw(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with something on them, and their numbers."""
    check(path, "file")  # a pipe gives nothing the second time
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, raw
    except OSError as fault:
        hint = "give a file of OpenAI batch lines"
        raise Refused(f"{path} cannot be read: {fault.strerror}", param="file", hint=hint) from fault


def _parsed(raw: bytes, number: int, first: dict[str, int]) -> Line:
    id = f"batch_req_{number}"

    def bad(what: str, param: str | None = None) -> Line:
        return Line(id, None, wrong=Refused(f"line {number} {what}", param=param))

    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        return bad(f"is not JSON: {fault}")
    if not isinstance(said, dict):
        return bad("is not a JSON object")
    name = said.get("custom_id")
    if not isinstance(name, str) or not name:
        return bad("has no custom_id; expected text", "custom_id")
    if name in first:
        what = f"has the custom_id {name!r} of line {first[name]}; expected one of its own"
        return bad(what, "custom_id")
    first[name] = number
    return Line(id, name, said.get("method"), said.get("url"), said.get("body"))


class Answers:
    """The output file: what is in it already, and a way to append that leaves only whole lines behind.

    `done` has the names of lines that are answered; see `Line.name`.
    """

    def __init__(self, path: Path):
        """Opens the file, cutting off a last line that was torn by an interruption. Raises Refused."""
        self.path = path
        self.done: set[tuple[str, str]] = set()
        with self._writing(), ExitStack() as closing:
            check(path, "output", "give a file: what it has already is read when a batch goes on")
            self._file = closing.enter_context(path.open("ab+", buffering=0))
            self._keep_whole_lines()
            closing.pop_all()  # all is well: it stays open
        self._synced = monotonic()

    def _keep_whole_lines(self) -> None:
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            end = 0
            for number, raw in enumerate(reader, 1):
                if not raw.endswith(b"\n"):
                    break  # torn, even if what is left parses
                if (name := _answered(raw)) is None:
                    raise Refused(
                        f"{self.path} line {number} is not an answer of a batch",
                        param="output",
                        hint="give another file with -o; this one is left as it is",
                    )
                self.done.add(name)
                end += len(raw)
        os.ftruncate(self._file.fileno(), end)

    def add(self, line: Line, answer: dict[str, Any]) -> None:
        """Append one answer in a single write. Raises Refused when the disk does not take it."""
        said = {"id": line.id, "custom_id": line.custom_id, **answer}
        with self._writing():
            self._write(_json(said) + b"\n")
            if monotonic() - self._synced > SYNC_EVERY:
                self._sync()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise Refused(f"{self.path} cannot be written: {fault.strerror}", param="output") from fault

    def _write(self, raw: bytes) -> None:
        while raw:  # a full disk takes a part of it; the torn line is cut off by the next run
            raw = raw[self._file.write(raw) or 0 :]

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def close(self) -> None:
        """Raises Refused where the disk does not take what was added."""
        with self._writing(), self._file:
            self._sync()


def _answered(raw: bytes) -> tuple[str, str] | None:
    """The name of the line that is answered; None where this is no answer."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or "custom_id" not in said:
        return None
    custom = said["custom_id"]
    return ("id", str(said.get("id"))) if custom is None else ("custom_id", str(custom))


def _json(said: dict[str, Any]) -> bytes:
    """UTF-8, with characters as they are; half a surrogate pair, which a custom_id may hold, has to stay escaped."""
    try:
        return json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(said).encode()
