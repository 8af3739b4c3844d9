"""Writes a GGUF file: the layout that gguf.py describes, tensor after tensor, complete or not at all."""

import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.checkpoint.gguf import ARRAY, STRING
from headrace.quant.ggml import KINDS, TYPES

VERSION, ALIGNMENT = 3, 32
U32, I32, F32, BOOL, I64 = 4, 5, 6, 7, 11
FORMS = {U32: "I", I32: "i", F32: "f", BOOL: "?", I64: "q"}
CODES = {kind.name: code for code, kind in TYPES.items()}

Progress = Callable[[int, int], None]  # bytes written so far, bytes in all


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor to write: shape in torch order, and what makes its bytes when its turn comes, in any type and shape."""

    name: str
    kind: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """When packed."""
        return KINDS[self.kind].size(self.shape)


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Written],
    progress: Progress | None = None,
) -> None:
    """Write a file that appears complete or not at all; one tensor is held at a time.

    metadata   values are bool, int, float (written as float32), str, or lists of one of them

    Raises Refused where the file is there already or the disk does not take it.
    """
    path = Path(path)
    if path.exists():
        raise Refused(f"{path} exists already", param="output", hint="give the path of a new file")
    try:
        with _replacing(path) as file:
            _write(file, metadata, tensors, progress)
    except OSError as fault:
        raise Refused(
            f"{path} cannot be written: {fault.strerror or fault}",
            param="output", hint="make room, or give a path elsewhere",
        ) from fault  # fmt: skip


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that goes there when all is well, and else nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.chmod(0o644)  # temporary files are for the owner's eyes only
        work.rename(path)
    finally:
        work.unlink(missing_ok=True)


def _write(
    file: IO[bytes], metadata: Mapping[str, Any], tensors: Sequence[Written], progress: Progress | None
) -> None:
    file.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key) + _typed(value))
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))
        file.write(_text(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        file.write(struct.pack("<IQ", CODES[tensor.kind], offset))
        offset += _aligned(tensor.nbytes)
    file.write(bytes(-file.tell() % ALIGNMENT))
    done, total = 0, sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        packed = tensor.make().contiguous().view(torch.uint8)
        assert packed.numel() == tensor.nbytes, f"{tensor.name}: {packed.numel()} bytes, not {tensor.nbytes}"
        file.write(packed.flatten().numpy().data)
        file.write(bytes(_aligned(tensor.nbytes) - tensor.nbytes))
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list):
        kind = STRING if all(isinstance(each, str) for each in value) else _kind_of(value)
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        if kind == STRING:
            return head + b"".join(_text(each) for each in value)
        return head + struct.pack(f"<{len(value)}{FORMS[kind]}", *value)
    kind = _kind_of([value])
    if kind == I32 and value >= 0:
        kind = U32
    return struct.pack("<I" + FORMS[kind], kind, value)


def _kind_of(values: Sequence[Any]) -> int:
    """The type of numbers in a list: those that converters write, and wider where one does not fit."""
    if all(isinstance(each, bool) for each in values):
        return BOOL
    if all(isinstance(each, int) for each in values):
        return I32 if all(-(1 << 31) <= each < 1 << 31 for each in values) else I64
    return F32
