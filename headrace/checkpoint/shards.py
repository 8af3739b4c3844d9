"""Safetensors files written piece by piece: tensors need not be in memory as a whole, and files can be joined.

The format: u64 length of a JSON header, the header (name -> dtype, shape, where its bytes begin and end), the bytes.
Wide types come first, so that every tensor lies where its type wants it; names decide among equals, so that the same
tensors give the same file.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint
from headrace.checkpoint.source import INDEX, SINGLE

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
WIDTHS = {name: torch.empty(0, dtype=dtype, device="cpu").element_size() for dtype, name in NAMES.items()}
CHUNK = 1 << 22
LARGEST = 5 * 1000**3  # bytes in one file
LONGEST_HEADER = 1 << 27
Part = TypeVar("Part")


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what it is, and what gives its bytes, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        """Of all pieces together."""
        return prod(self.shape) * WIDTHS[self.dtype]


def entry(name: str, tensor: Tensor) -> Entry:
    """A tensor that is there."""
    return Entry(name, NAMES[tensor.dtype], tuple(tensor.shape), lambda: iter([_bytes(tensor)]))


def streamed(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], rows: Callable[[], Iterator[Tensor]]
) -> Entry:
    """A matrix that comes some rows at a time."""
    return Entry(name, NAMES[dtype], shape, lambda: (_bytes(each.to(dtype)) for each in rows()))


def write(file: Path, entries: Iterable[Entry]) -> None:
    """Write a file and wait until it is on the disk. Raises OSError where it cannot be."""
    ordered = sorted(entries, key=lambda one: (-WIDTHS[one.dtype], one.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in ordered:
        start, end = end, end + one.nbytes
        header[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [start, end]}
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(words)) + words)
        for one in ordered:
            written = sum(out.write(piece) for piece in one.pieces())
            assert written == one.nbytes, f"{one.name}: {written} of {one.nbytes} bytes"
        out.flush()
        os.fsync(out.fileno())


def entries(file: Path) -> list[Entry]:
    """The tensors of a file, read when they are written elsewhere. Raises BadCheckpoint for what is no such file."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\xff"))
        if length > LONGEST_HEADER:
            raise BadCheckpoint(f"{file} is damaged")
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return [
        Entry(name, said["dtype"], tuple(said["shape"]), _from(file, 8 + length, *said["data_offsets"]))
        for name, said in header.items()
    ]


def plan(
    parts: Iterable[Part], size: Callable[[Part], int], largest: int = LARGEST
) -> list[tuple[str, list[Part]]]:
    """(name of a shard, what goes into it), in order and each part whole, up to `largest` bytes."""
    groups: list[list[Part]] = []
    room = 0
    for part in parts:
        if not groups or size(part) > room:
            groups.append([])
            room = largest
        groups[-1].append(part)
        room -= size(part)
    if len(groups) == 1:
        return [(SINGLE, groups[0])]
    return [(f"model-{n:05}-of-{len(groups):05}.safetensors", group) for n, group in enumerate(groups, 1)]


def write_index(folder: Path, shards: Mapping[str, Sequence[Entry]]) -> None:
    """What says which shard has a tensor; nothing where there is one shard."""
    if len(shards) < 2:
        return
    where = {one.name: shard for shard, found in shards.items() for one in found}
    size = sum(one.nbytes for found in shards.values() for one in found)
    table = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", "utf-8")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _from(file: Path, base: int, start: int, end: int) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        with file.open("rb") as opened:
            opened.seek(base + start)
            left = end - start
            while left and (piece := opened.read(min(CHUNK, left))):
                left -= len(piece)
                yield memoryview(piece)

    return pieces
