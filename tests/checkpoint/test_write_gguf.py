"""What is written is read back, by us and by the gguf package; a file is complete or not there."""

import errno
import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from headrace.base.errors import Refused
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.write_gguf import Written, write_gguf
from headrace.quant.ggml_pack import quantize

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "whole": 7,
    "large": (1 << 32) - 1,
    "huge": 1 << 40,
    "less": -3,
    "real": 0.25,
    "yes": True,
    "no": False,
    "words": "Größe 🦙",
    "empty": "",
    "texts": ["a", "", "Ġb"],
    "types": [1, 3, 6],
    "scores": [-1.0, 0.5],
    "flags": [True, False],
}


def tensors(rows: int = 3) -> list[Written]:
    torch.manual_seed(0)
    plain, odd, matrix = torch.randn(5), torch.randn(rows, 7), torch.randn(rows, 64)
    return [
        Written("plain", "F32", (5,), lambda: plain),
        Written("odd", "F16", (rows, 7), odd.half),
        Written("eight", "Q8_0", (rows, 64), lambda: quantize(matrix, "Q8_0")),
        Written("four", "Q4_0", (rows, 64), lambda: quantize(matrix, "Q4_0")),
    ]


def test_we_read_what_we_wrote(tmp_path: Path):
    told: list[tuple[int, int]] = []
    write_gguf(tmp_path / "x.gguf", METADATA, tensors(), lambda done, total: told.append((done, total)))
    found = Gguf(tmp_path / "x.gguf")
    assert found.metadata == METADATA
    assert all(type(found.metadata[key]) is type(value) for key, value in METADATA.items())
    assert list(found.tensors) == ["plain", "odd", "eight", "four"]
    for tensor in tensors():
        entry = found.tensors[tensor.name]
        assert (entry.type, entry.shape, entry.nbytes) == (tensor.kind, tensor.shape, tensor.nbytes)
        assert torch.equal(found.raw(tensor.name), tensor.make().contiguous().view(torch.uint8).flatten())
    total = sum(tensor.nbytes for tensor in tensors())
    assert told[-1] == (total, total)
    assert len(told) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").stat().st_mode & 0o777 == 0o644


def test_the_gguf_package_reads_it(tmp_path: Path):
    write_gguf(tmp_path / "x.gguf", METADATA, tensors())
    found = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {
        key: field.contents() for key, field in found.fields.items() if not key.startswith("GGUF.")
    } == METADATA
    read = {tensor.name: tensor for tensor in found.tensors}
    for tensor in tensors():
        theirs = read[tensor.name]
        assert theirs.tensor_type.name == tensor.kind
        assert theirs.shape.tolist() == list(reversed(tensor.shape))
        assert theirs.data.tobytes() == tensor.make().contiguous().view(torch.uint8).numpy().tobytes()


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(Refused, match="exists already"):
        write_gguf(tmp_path / "x.gguf", METADATA, tensors())
    assert (tmp_path / "x.gguf").read_text() == "mine"


def test_a_fault_leaves_nothing(tmp_path: Path):
    def broken() -> torch.Tensor:
        raise KeyError("gone")

    with pytest.raises(KeyError):
        write_gguf(tmp_path / "x.gguf", METADATA, [*tensors(), Written("bad", "F32", (3,), broken)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="No space left") as caught:
        write_gguf(tmp_path / "x.gguf", METADATA, tensors())
    assert "make room" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written"):
        write_gguf(tmp_path / "file" / "x.gguf", METADATA, tensors())
