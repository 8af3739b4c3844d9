"""The folder beside the result in which a run keeps what it has done, so that it can go on where it was killed.

A file is in its place once it is complete and on the disk; the journal, which says what is done, is replaced in one
step after that. The result moves to its place in one step at the end.
"""

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json

try:
    import fcntl
except ImportError:  # not there on Windows: two runs at once are then not noticed
    fcntl = None

JOURNAL, LOCK, RESULT = "journal.json", "lock", "result"
VERSION = 1


def folder_of(out: Path) -> Path:
    """Where the work for a result is kept."""
    return out.parent / f".{out.name}.optimize"


class Work(contextlib.AbstractContextManager["Work"]):
    """An opened work folder; to be used in a `with`, which lets no other run have it meanwhile.

    `identity` is all that decides the bytes of the result (and, for messages, says what it was). Where there is work of
    another identity, Refused says so; `fresh` throws it away.
    """

    def __init__(self, out: Path, identity: dict[str, Any], fresh: bool):
        self.out, self.folder = out, folder_of(out)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock: BinaryIO = (self.folder / LOCK).open("wb")
        except OSError as fault:
            raise Refused(
                f"{out} cannot be written: {fault.strerror}",
                param="out",
                hint="give the path of another folder",
            ) from fault
        try:
            self._take()
            check_free(out)  # another run may have finished since it was looked at
            self.journal = self._opened(identity, fresh)
        except BaseException:
            self._lock.close()
            raise

    def __exit__(self, *fault: object) -> None:
        self._lock.close()

    @property
    def resumed(self) -> bool:
        """Whether something had been done before."""
        return bool(self.journal["resumed"])

    def note(self, **changes: Any) -> None:
        """Write into the journal what is done now."""
        self.journal |= changes
        write_json(self.folder / JOURNAL, self.journal)

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """As many threads of torch as the work began with: with other numbers of them sums round otherwise."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.journal.setdefault("threads", before))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def forget(self, pattern: str, but: Path | None = None) -> None:
        """Delete files that are no longer needed."""
        for file in self.folder.glob(pattern):
            if file != but:
                file.unlink(missing_ok=True)

    def finish(self) -> None:
        """Move the result to its place, and throw the rest away."""
        result = self.folder / RESULT
        for each in (*result.iterdir(), result):
            sync(each)
        try:
            result.rename(self.out)
        except OSError as fault:
            raise Refused(
                f"{self.out} cannot be put in its place: {fault.strerror}",
                hint=f"the result lies complete in {result}; move it yourself, or run the command again",
            ) from fault
        sync(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise Refused(
                f"another run is writing {self.out}", hint="wait for it, or write elsewhere", param="out"
            ) from fault

    def _opened(self, identity: dict[str, Any], fresh: bool) -> dict[str, Any]:
        file = self.folder / JOURNAL
        new: dict[str, Any] = {"version": VERSION, "identity": identity, "blocks": 0, "resumed": False}
        new |= {"layers": [], "seconds": 0.0}
        found = None if fresh else self._found(file)
        if found is not None and found.get("joined") and not (self.folder / RESULT).is_dir():
            found = None  # killed after the result had moved to its place, where it is no longer
        if found is None:
            for each in self.folder.iterdir():
                if each.is_dir():
                    shutil.rmtree(each)
                elif each.name != LOCK:
                    each.unlink()
            write_json(file, new)
            return new
        if found.get("version") != VERSION or found.get("identity") != identity:
            raise Refused(
                f"{self.folder} holds unfinished work with another {_difference(found, identity)}",
                param="out",
                hint="add --fresh to throw it away, write elsewhere, or ask for what was asked for then",
            )
        return found | {"resumed": found["blocks"] > 0 or found["resumed"]}

    def _found(self, file: Path) -> dict[str, Any] | None:
        if not file.is_file():
            return None
        try:
            return read_json(file)
        except BadCheckpoint as fault:
            raise Refused(
                f"{file} is damaged", param="out", hint="add --fresh to start from the beginning"
            ) from fault


def _difference(found: dict[str, Any], identity: dict[str, Any]) -> str:
    was = found.get("identity")
    names = [key for key, value in identity.items() if not isinstance(was, dict) or was.get(key) != value]
    return " and ".join(names) or "version of this program"


def write_json(file: Path, value: Any) -> None:
    """Replace a file in one step."""
    fresh = file.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as out:
        json.dump(value, out)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; a file system that cannot say so is left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_free(out: Path) -> None:
    """Raises Refused where something lies already; an empty folder does not count."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise Refused(
            f"{out} exists already", param="out", hint="give the path of a folder that does not exist yet"
        )


def check_disk(out: Path, need: int, hint: str) -> None:
    """Raises Refused where the disk has no room for so many bytes, of which unfinished work for `out` has some."""
    where = next(folder for folder in out.parents if folder.exists())
    done = sum(file.stat().st_size for file in folder_of(out).rglob("*") if file.is_file())
    free = shutil.disk_usage(where).free + done
    if need > free:
        raise Refused(
            f"{need / 1e9:.3g} GB of disk are needed until the end; {where} has {free / 1e9:.3g} GB",
            param="out",
            hint=hint,
        )


@contextlib.contextmanager
def room(folder: Path, need: int) -> Iterator[None]:
    """A full disk, said so that a person can act on it. `need`: bytes of the whole undertaking."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Refused(
            f"no room left in {folder.parent}: {fault.strerror}",
            hint=f"make room ({need / 1e9:.3g} GB are needed in all) and run the command again: it goes on where it "
            f"stopped; or delete {folder}",
        ) from fault


class Hidden:
    """Hidden states [S windows, T tokens, E] in float32, in a file: read and written window by window, never mapped.

    Mapped pages would count as the process's memory.
    """

    def __init__(self, file: Path, tokens: int, width: int):
        self.file, self._shape = file, (tokens, width)
        self._size = tokens * width * 4

    def windows(self) -> Iterator[Tensor]:
        """Each [T, E], on CPU, in order."""
        with self.file.open("rb") as opened:
            while raw := opened.read(self._size):
                yield self._window(raw)

    def at(self, number: int) -> Tensor:
        """One of them."""
        with self.file.open("rb") as opened:
            opened.seek(number * self._size)
            return self._window(opened.read(self._size))

    def _window(self, raw: bytes) -> Tensor:
        return torch.from_numpy(np.frombuffer(bytearray(raw), np.float32)).view(self._shape)

    def write(self, windows: Iterator[Tensor]) -> int:
        """All windows; their checksum."""
        sum_ = 0
        with self.file.open("wb") as out:
            for each in windows:
                raw = each.to("cpu", torch.float32).contiguous().numpy().data
                out.write(raw)
                sum_ = zlib.crc32(raw, sum_)
        return sum_

    def check(self, checksum: int) -> None:
        """Raises Refused where what is in the file has another checksum, or where there is none."""
        sum_ = 0
        if self.file.is_file():
            with self.file.open("rb") as opened:
                while raw := opened.read(1 << 22):
                    sum_ = zlib.crc32(raw, sum_)
        if sum_ != checksum or not self.file.is_file():
            raise Refused(
                f"{self.file} is damaged", param="out", hint="add --fresh to start from the beginning"
            )
