"""A GGUF file, mapped into memory: its metadata and where each tensor lies.

Layout (version 2 and 3, little endian): "GGUF", u32 version, u64 tensors, u64 keys; the keys (name, u32 type,
value); the tensors (name, u32 dimensions, u64 each, fastest first, u32 type, u64 offset); padding up to
`general.alignment`; the data. A string is a u64 length and that many bytes of UTF-8.

Nothing in the file is believed: every length is held against what is left of it before anything is allocated.
"""

import mmap
import struct
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, UnknownName
from headrace.base.text_file import check
from headrace.quant.ggml import TYPES

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
NUMPY = {code: np.dtype("<" + letter) for code, letter in SCALARS.items()}
UNREADABLE = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
MOST_DIMENSIONS = 4
MOST_DEPTH = 4  # of arrays in arrays
MOST_ITEMS = 1 << 22  # in all arrays together; the largest vocabularies with merges stay below a million
LONGEST_NAME = 1 << 16
SMALLEST_KEY, SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies. `shape` is in torch order (slowest first), `offset` from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Gguf:
    """An opened, fully checked file. Raises BadCheckpoint if it is damaged or of a kind we do not read.

    metadata  key -> bool, int, float, str or a list of them
    tensors   name -> Entry
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UnknownName(f"no file {self.path}") from None
        except (OSError, ValueError) as fault:  # ValueError: an empty file cannot be mapped
            raise BadCheckpoint(f"{self.path} cannot be read: {fault}") from fault
        header = _Header(self._map, self.path)
        try:
            self.metadata, self.tensors = header.read()
        except (struct.error, UnicodeDecodeError, OverflowError) as fault:
            raise BadCheckpoint(f"{self.path} is damaged near byte {header.at}: {fault}") from fault
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "not writable": that is the intention
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def raw(self, name: str) -> Tensor:
        """The packed bytes of a tensor (uint8, flat), straight from the mapping: never write to them."""
        entry = self.tensors[name]
        return self._bytes[entry.offset : entry.offset + entry.nbytes]

    def release(self, name: str) -> None:
        """Take what was read of a tensor out of this process's memory; it is mapped again when it is needed."""
        entry, page = self.tensors[name], mmap.PAGESIZE
        start, stop = -(-entry.offset // page) * page, (entry.offset + entry.nbytes) // page * page
        if stop > start and sys.platform == "linux":
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def opened(path: str | Path) -> Path | Gguf:
    """A .gguf file opened, for several readers that each would do so; any other path as it is."""
    path = Path(path)
    if path.suffix != ".gguf" or path.is_dir():
        return path
    check(path, "model")
    return Gguf(path)


class _Header:
    """Reads from `at` onward; every method leaves `at` behind what it read."""

    def __init__(self, source: mmap.mmap, path: Path):
        self.source, self.path, self.at = source, path, 0
        self.end = len(source)
        self.items = 0

    def read(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        tensors, keys = self.opening()
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.name()
            if key in metadata:
                raise self.bad(f"has the key {key!r} twice")
            metadata[key] = self.value(self.number("I"))
        if (parts := metadata.get("split.count", 1)) not in (0, 1):
            raise BadCheckpoint(
                f"{self.path} is one of {parts} parts of a model",
                hint="merge the parts into one file first (llama-gguf-split --merge)",
            )
        found = [self.tensor() for _ in range(tensors)]
        return metadata, self.place(found, self.alignment(metadata))

    def bad(self, what: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self.path} {what}")

    def opening(self) -> tuple[int, int]:
        if self.source[:4] != b"GGUF":
            raise self.bad(f"is not a GGUF file: it begins with {self.source[:4]!r}")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            swapped = version == 3 << 24
            raise self.bad("is big-endian GGUF" if swapped else f"has GGUF version {version}; known: 2 and 3")
        tensors, keys = self.number("Q"), self.number("Q")
        if keys * SMALLEST_KEY + tensors * SMALLEST_TENSOR > self.end - self.at:
            raise self.bad(
                f"announces {keys} keys and {tensors} tensors, more than {self.end} bytes can hold"
            )
        return tensors, keys

    # -- values ---------------------------------------------------------------------------------------------

    def number(self, code: str) -> Any:
        form = struct.Struct("<" + code)
        (value,) = form.unpack_from(self.source, self.at)
        self.at += form.size
        return value

    def name(self) -> str:
        """The name of a key or of a tensor."""
        length = self.number("Q")
        if not 0 < length < LONGEST_NAME:
            raise self.bad(f"has a name of {length} bytes at byte {self.at}")
        return self.text(length)

    def text(self, length: int) -> str:
        if length > self.end - self.at:
            raise self.bad(f"ends within a string of {length} bytes at byte {self.at}")
        self.at += length
        return self.source[self.at - length : self.at].decode()

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text(self.number("Q"))
        if kind == ARRAY:
            return self.array(depth)
        if kind not in SCALARS:
            raise self.bad(f"has a value of unknown type {kind} at byte {self.at}")
        return self.number(SCALARS[kind])

    def array(self, depth: int) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        self.items += count
        if self.items > MOST_ITEMS or depth >= MOST_DEPTH:
            raise self.bad(f"has an array of {count} items, {depth} deep, at byte {self.at}: too much")
        if kind == STRING:
            return self.strings(count)
        if kind == ARRAY:
            return [self.array(depth + 1) for _ in range(count)]
        if kind not in NUMPY:
            raise self.bad(f"has an array of unknown type {kind} at byte {self.at}")
        form = NUMPY[kind]
        if count * form.itemsize > self.end - self.at:
            raise self.bad(f"ends within an array of {count} items at byte {self.at}")
        start, self.at = self.at, self.at + count * form.itemsize
        return np.frombuffer(self.source[start : self.at], form).tolist()

    def strings(self, count: int) -> list[str]:
        """A vocabulary is a hundred thousand short strings: one tight loop, no calls of our own."""
        source, at, end = self.source, self.at, self.end
        length = struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            start = at + 8
            at = start + length(source, at)[0]
            if at > end:
                raise self.bad(f"ends within a string at byte {start}")
            found.append(source[start:at].decode())
        self.at = at
        return found

    # -- tensors --------------------------------------------------------------------------------------------

    def tensor(self) -> Entry:
        """One entry, its offset still counted from the start of the data."""
        name, dimensions = self.name(), self.number("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise self.bad(f"has tensor {name!r} of {dimensions} dimensions; {MOST_DIMENSIONS} are the most")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        code, offset = self.number("I"), self.number("Q")
        if 0 in shape:
            raise self.bad(f"has an empty tensor {name!r} of shape {list(shape)}")
        if code in UNREADABLE:
            raise BadCheckpoint(
                f"{self.path} has tensor {name!r} of type {UNREADABLE[code]}, which is not supported",
                hint=f"take a file made of {', '.join(kind.name for kind in TYPES.values())}",
            )
        if code not in TYPES:
            raise self.bad(f"has tensor {name!r} of unknown type {code}")
        try:
            size = TYPES[code].size(shape)
        except ValueError as fault:
            raise self.bad(f"has a broken tensor {name!r}: {fault}") from None
        return Entry(name, TYPES[code].name, shape, offset, size)

    def alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", 32)
        if not isinstance(value, int) or value % 8 or not 0 < value <= 1 << 20:
            raise self.bad(f"has alignment {value!r}; a multiple of 8 was expected")
        return value

    def place(self, found: list[Entry], alignment: int) -> dict[str, Entry]:
        """Offsets counted from the start of the file; each tensor inside it, aligned, apart from others."""
        data = -(-self.at // alignment) * alignment
        tensors: dict[str, Entry] = {}
        last, reached = "", 0
        for entry in sorted(found, key=lambda entry: entry.offset):
            if entry.name in tensors:
                raise self.bad(f"has tensor {entry.name!r} twice")
            if entry.offset % alignment:
                at = f"offset {entry.offset}, not a multiple of {alignment}"
                raise self.bad(f"has tensor {entry.name!r} at {at}")
            if entry.offset < reached:
                raise self.bad(f"has tensors {last!r} and {entry.name!r} overlapping")
            last, reached = entry.name, entry.offset + entry.nbytes
            if data + reached > self.end:
                raise self.bad(f"is cut short: it has {self.end} bytes, {last!r} ends at {data + reached}")
            tensors[last] = Entry(last, entry.type, entry.shape, data + entry.offset, entry.nbytes)
        return tensors
