"""Where tensors come from: a folder of safetensors or a .gguf file, under Hugging Face's names either way."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.base.json_file import read_json
from headrace.checkpoint.ferry import Ferry
from headrace.checkpoint.gguf import Entry, Gguf, opened
from headrace.checkpoint.translate import NOT_WEIGHTS, Family, family_of, hf_name
from headrace.quant.ggml import KINDS, dequantize_into
from headrace.quant.scheme import Packed, Scheme
from headrace.quant.schemes import ggml_blocks

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class Source(Protocol):
    """Tensors by Hugging Face name, each read when asked for."""

    @property
    def path(self) -> Path:
        """What was opened, for messages."""
        ...

    def names(self) -> set[str]:
        """All there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Known without reading the tensor."""
        ...

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """The tensor, converted into `into` (equal shape, any float dtype and device) or a new one on CPU.

        Raises BadCheckpoint if its shape is another, or if it cannot be read.
        """
        ...

    def packed(self, name: str) -> tuple[Scheme, Packed] | None:
        """A weight as it is quantized here, on CPU; None for one that is not."""
        ...


def open_source(path: str | Path | Gguf) -> Source:
    """A folder with safetensors files, one such file, or a .gguf file, opened or not.

    Raises UnknownName if there is nothing there, Refused if there are weights in other formats only,
    BadCheckpoint if a file is damaged or missing.
    """
    path = path if isinstance(path, Gguf) else opened(path)
    if isinstance(path, Gguf):
        return GgufSource(path)
    if path.suffix == ".safetensors" and not path.is_dir():
        return SafetensorsSource(path, {path.name: None})
    if not path.is_dir():
        raise UnknownName(f"no folder {path}", hint="expected a folder with safetensors, or a .gguf file")
    if (path / SINGLE).is_file():
        return SafetensorsSource(path, {SINGLE: None})
    if (path / INDEX).is_file():
        return SafetensorsSource(path, _shards(path / INDEX))
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if len(found) == 1:
        return SafetensorsSource(path, {found[0]: None})
    if found:
        raise BadCheckpoint(
            f"{path} has {len(found)} safetensors files and no {INDEX}", hint="download it again"
        )
    others = sorted(
        file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack")
    )
    if others:
        raise Refused(
            f"{path} has no safetensors, only {', '.join(others[:3])}",
            hint="such files can run code and are never opened; take or make a safetensors copy of the model",
        )
    raise UnknownName(
        f"{path} has no weights", hint=f"expected {SINGLE}, {INDEX}, or give the path of a .gguf file"
    )


def _shards(index: Path) -> dict[str, set[str] | None]:
    """File name -> the tensors that the index says are in it."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BadCheckpoint(f"{index} has no weight_map")
    shards: dict[str, set[str] | None] = {}
    for name, file in table.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise BadCheckpoint(
                f"{index} places {name!r} in {file!r}; the name of a file beside it was expected"
            )
        listed = shards.setdefault(file, set())
        assert listed is not None
        listed.add(name)
    missing = sorted(file for file in shards if not (index.parent / file).is_file())
    if missing:
        names = ", ".join(missing[:5])
        raise BadCheckpoint(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} files its index names: {names}"
        )
    return shards


class SafetensorsSource:
    """One or more safetensors files, mapped into memory."""

    def __init__(self, path: Path, files: dict[str, set[str] | None]):
        self.path = path
        self._ferry = Ferry()
        self._where: dict[str, Any] = {}
        folder = path if path.is_dir() else path.parent
        for file, listed in files.items():
            opened = self._open(folder / file)
            there = set(opened.keys())
            if absent := sorted((listed or set()) - there):
                raise BadCheckpoint(
                    f"{folder / file} lacks tensors that the index says it has: {', '.join(absent[:5])}"
                )
            self._where |= dict.fromkeys(there if listed is None else listed, opened)

    def _open(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt", device="cpu")
        except FileNotFoundError:
            raise UnknownName(f"no file {file}") from None
        except (SafetensorError, OSError, ValueError) as fault:
            raise BadCheckpoint(f"{file} is damaged: {fault}") from fault

    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        self._check_float(name)
        found = self.stored(name)
        if into is None:
            return found
        check_shape(self, name, into.shape)
        return self._ferry.carry(found, into)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, as `read` gives them."""
        self._check_float(name)
        with self._readable(name):
            return self._where[name].get_slice(name)[start:stop]

    def stored(self, name: str) -> Tensor:
        """The tensor on CPU in the type it has, whichever that is. Raises BadCheckpoint if it cannot be read."""
        with self._readable(name):
            return self._where[name].get_tensor(name)

    def kind(self, name: str) -> str:
        """The type that it has, in the format's words."""
        with self._readable(name):
            return self._where[name].get_slice(name).get_dtype()

    def _check_float(self, name: str) -> None:
        if (kind := self.kind(name)) not in FLOATS:
            expected = ", ".join(sorted(FLOATS))
            raise BadCheckpoint(f"{self.path}: {name} is of type {kind}; one of {expected} was expected")

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, ValueError, RuntimeError) as fault:
            raise BadCheckpoint(f"{self.path}: {name} cannot be read: {fault}") from fault

    def packed(self, name: str) -> tuple[Scheme, Packed] | None:
        """See Source: nothing is known here of how weights are quantized, see quantized.py."""
        return None


class GgufSource:
    """A .gguf file: unpacked, and what its converter did to weights undone."""

    def __init__(self, file: Path | Gguf):
        self.gguf = file if isinstance(file, Gguf) else Gguf(file)
        self.path = self.gguf.path
        self.family: Family = family_of(self.gguf)
        self._entries = {
            hf_name(entry.name, self.family): entry
            for entry in self.gguf.tensors.values()
            if entry.name not in NOT_WEIGHTS
        }

    def names(self) -> set[str]:
        return set(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        entry = self._entries[name]
        out = torch.empty(entry.shape, device="cpu") if into is None else into
        check_shape(self, name, out.shape)
        raw = self._ordered(name)
        if self.family.shifted_norms and name.endswith("norm.weight"):
            wide = torch.empty(entry.shape, device="cpu")
            dequantize_into(raw, entry.type, wide)
            return out.copy_(wide.sub_(1))
        dequantize_into(raw, entry.type, out)
        self.gguf.release(entry.name)
        return out

    def packed(self, name: str) -> tuple[Scheme, Packed] | None:
        entry = self._entries[name]
        scheme = ggml_blocks.SCHEMES.get(entry.type.lower())
        if scheme is None or len(entry.shape) != 2:
            return None
        return scheme, {"weight": self._ordered(name).view(entry.shape[0], -1, KINDS[entry.type].bytes)}

    def stored(self, name: str) -> tuple[Tensor, Entry]:
        """The bytes of a tensor as they lie in the file, and what they are."""
        entry = self._entries[name]
        return self.gguf.raw(entry.name), entry

    def _ordered(self, name: str) -> Tensor:
        """A tensor's bytes, rows of each head back from (pair, half) to (half, pair) order; they move still packed."""
        raw, entry = self.stored(name)
        if not (self.family.permuted and is_permuted(name)):
            return raw
        arch = self.gguf.metadata["general.architecture"]
        heads = self.gguf.metadata.get(f"{arch}.attention.head_count")
        if ".attn_k." in entry.name:
            heads = self.gguf.metadata.get(f"{arch}.attention.head_count_kv", heads)
        rows = entry.shape[0]
        if isinstance(heads, list):
            heads = heads[0] if heads else None
        if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
            raise BadCheckpoint(f"{self.path}: the {rows} rows of {entry.name} cannot be {heads!r} heads")
        return raw.view(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(-1)


def is_permuted(name: str) -> bool:
    """Whether a llama converter reordered the rows of this tensor."""
    return ".self_attn.q_proj." in name or ".self_attn.k_proj." in name


def check_shape(source: Source, name: str, wanted: Sequence[int]) -> None:
    """Raises BadCheckpoint where a tensor has another shape than is wanted."""
    if (found := list(source.shape(name))) != list(wanted):
        raise BadCheckpoint(
            f"{source.path}: {name} has shape {found}; the configuration asks for {list(wanted)}"
        )
