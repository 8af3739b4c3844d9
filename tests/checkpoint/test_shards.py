"""Files written piece by piece are what the library reads, and can be joined without being read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.base.errors import BadCheckpoint
from headrace.checkpoint import shards
from headrace.checkpoint.load import open_source

DTYPES = list(shards.NAMES)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        f"t{n}": (torch.rand(3, n + 1, generator=generator) * 7).to(dtype) for n, dtype in enumerate(DTYPES)
    }
    return {
        **made,
        "one": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "flat": torch.arange(5, dtype=torch.uint8),
    }


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float()), name


def test_the_library_reads_it(tmp_path: Path):
    shards.write(tmp_path / "a.safetensors", [shards.entry(name, each) for name, each in tensors().items()])
    same(load_file(tmp_path / "a.safetensors"), tensors())
    again = [shards.entry(name, each) for name, each in reversed(tensors().items())]
    shards.write(tmp_path / "b.safetensors", again)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tensors_lie_where_their_type_wants_them(tmp_path: Path):
    shards.write(tmp_path / "a.safetensors", [shards.entry(name, each) for name, each in tensors().items()])
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    for name, each in tensors().items():
        assert header[name]["data_offsets"][0] % each.element_size() == 0


def test_rows_come_one_after_the_other(tmp_path: Path):
    whole = torch.randn(10, 4)
    entry = shards.streamed("e", torch.bfloat16, (10, 4), lambda: iter(whole.split(3)))
    shards.write(tmp_path / "a.safetensors", [entry, shards.entry("x", torch.ones(2))])
    same(load_file(tmp_path / "a.safetensors"), {"e": whole.bfloat16(), "x": torch.ones(2)})


def test_too_few_rows_are_noticed(tmp_path: Path):
    entry = shards.streamed("e", torch.float32, (10, 4), lambda: iter([torch.ones(9, 4)]))
    with pytest.raises(AssertionError, match="e: 144 of 160 bytes"):
        shards.write(tmp_path / "a.safetensors", [entry])


def test_files_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "CHUNK", 7)
    items = list(tensors().items())
    files = [tmp_path / "a.part", tmp_path / "b.part", tmp_path / "c.part"]
    for file, some in zip(files, (items[:3], items[3:5], items[5:]), strict=True):
        shards.write(file, [shards.entry(name, each) for name, each in some])

    def size(file: Path) -> int:
        return file.stat().st_size

    assert shards.plan(files, size) == [("model.safetensors", files)]
    planned = shards.plan(files, size, size(files[0]) + size(files[1]))
    assert [name for name, _ in planned] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    found = {}
    for name, group in planned:
        found[name] = [one for file in group for one in shards.entries(file)]
        shards.write(tmp_path / name, found[name])
    shards.write_index(tmp_path, found)
    source = open_source(tmp_path)
    assert source.names() == set(tensors())
    same({name: load_file(tmp_path / name) for name, _ in planned}[planned[0][0]], dict(items[:5]))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(each.nbytes for _, each in items)


def test_one_file_needs_no_index(tmp_path: Path):
    shards.write_index(tmp_path, {"model.safetensors": []})
    assert not list(tmp_path.iterdir())


def test_what_others_wrote_is_understood(tmp_path: Path):
    save_file(tensors(), tmp_path / "theirs")
    shards.write(tmp_path / "ours", shards.entries(tmp_path / "theirs"))
    same(load_file(tmp_path / "ours"), tensors())


@pytest.mark.parametrize("raw", [b"", b"abc", b"\xff" * 40])
def test_what_is_no_such_file_is_said(tmp_path: Path, raw: bytes):
    (tmp_path / "bad").write_bytes(raw)
    with pytest.raises(BadCheckpoint, match="damaged"):
        shards.entries(tmp_path / "bad")
