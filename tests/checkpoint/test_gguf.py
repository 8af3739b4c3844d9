"""GGUF files: read as the gguf package reads them; damaged in any way they are refused and nothing worse."""

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.gguf import Gguf, opened
from tests.checkpoint.files import write_gguf

METADATA: dict[str, Any] = {
    "a.bool": True,
    "a.int": 7,
    "a.float": 0.5,
    "a.text": "häuser",
    "a.texts": ["", "Ġt", "日本"],
    "a.ints": [1, 2, 3],
    "a.floats": [0.25, -1.5],
    "a.flags": [True, False],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        "one": rng.standard_normal((4, 64), dtype=np.float32),
        "two": rng.standard_normal((3, 5)).astype(np.float16),
        "three": rng.standard_normal((2, 3, 32), dtype=np.float32),
    }
    return write_gguf(tmp_path / "small.gguf", "llama", METADATA, tensors, {"one": "Q4_0"})


def pieces(*parts: bytes | int | str) -> bytes:
    """Bytes as they are, numbers as u32, text with its u64 length."""
    out = b""
    for part in parts:
        match part:
            case bytes():
                out += part
            case int():
                out += struct.pack("<I", part)
            case str():
                out += struct.pack("<Q", len(part)) + part.encode()
    return out


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def start(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return pieces(name, len(dims), b"".join(map(u64, dims)), kind, u64(offset))


def test_metadata_and_tensors_equal_the_reference(file: Path):
    ours, theirs = Gguf(file), gguf.GGUFReader(file)
    assert {key: value for key, value in ours.metadata.items() if key != "general.architecture"} == METADATA
    assert ours.metadata["general.architecture"] == "llama"
    assert set(ours.tensors) == {t.name for t in theirs.tensors} == {"one", "two", "three"}
    for t in theirs.tensors:
        entry = ours.tensors[t.name]
        assert entry.shape == tuple(reversed(t.shape.tolist()))
        assert entry.type == t.tensor_type.name
        assert ours.raw(t.name).numpy().tobytes() == t.data.tobytes()


def test_the_bytes_are_mapped_and_outlive_the_reader(file: Path):
    raw = Gguf(file).raw("two")
    assert raw.view(torch.float16).isfinite().all()


def test_version_2_is_read_too(file: Path):
    data = bytearray(file.read_bytes())
    data[4] = 2
    file.write_bytes(data)
    assert set(Gguf(file).tensors) == {"one", "two", "three"}


def test_an_array_in_an_array(tmp_path: Path):
    inner = pieces(9, u64(2), 4, u64(1), 5, 8, u64(1), "x")
    (tmp_path / "x.gguf").write_bytes(start(0, 1) + pieces("k", 9, inner))
    assert Gguf(tmp_path / "x.gguf").metadata == {"k": [[5], ["x"]]}


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(Refused, match="a pipe or a device"):
        opened(tmp_path / "m.gguf")


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(UnknownName, match="no file"):
        Gguf(tmp_path / "none.gguf")


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        Gguf(tmp_path)


DAMAGED = {
    "cannot be read": b"",
    "is not a GGUF file": b"PK\x03\x04 something else entirely",
    "damaged near": b"GGUF\x03\x00",
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1": start(version=1),
    "more than": start(keys=1 << 40),
    "more than 2": start(tensors=1),
    "a name of 0 bytes": start(keys=1) + pieces("", 4, 1),
    "name of 281474976710656 bytes": start(keys=1) + u64(1 << 48) + bytes(32),
    "the key 'k' twice": start(keys=2) + pieces("k", 4, 1, "k", 4, 1),
    "ends within a string of": start(keys=1) + pieces("k", 8, u64(1 << 63)),
    "utf-8": start(keys=1) + pieces("k", 8, u64(1), b"\xff", bytes(8)),
    "unknown type 99": start(keys=1) + pieces("k", 99, bytes(8)),
    "array of unknown type 99": start(keys=1) + pieces("k", 9, 99, u64(1), bytes(8)),
    "too much": start(keys=1) + pieces("k", 9, 0, u64(1 << 40)),
    "ends within an array": start(keys=1) + pieces("k", 9, 10, u64(1000)),
    "ends within a string at": start(keys=1) + pieces("k", 9, 8, u64(2), "ab", u64(1 << 62)),
    "5 deep|4 deep": start(keys=1) + pieces("k", 9) + pieces(9, u64(1)) * 6 + pieces(4, u64(0)),
    "one of 3 parts": start(keys=1) + pieces("split.count", 4, 3),
    "one of x parts": start(keys=1) + pieces("split.count", 8, "x"),
    "alignment 12": start(keys=1) + pieces("general.alignment", 4, 12),
    "alignment 'x'": start(keys=1) + pieces("general.alignment", 8, "x"),
    "5 dimensions": start(1) + tensor("t", [1] * 5),
    "of 0 dimensions": start(1) + tensor("t", []),
    "an empty tensor": start(1) + tensor("t", [4, 0]),
    "unknown type 77": start(1) + tensor("t", [4], kind=77),
    "IQ4_XS, which is not supported": start(1) + tensor("t", [256], kind=23),
    "not whole Q4_0 blocks": start(1) + tensor("t", [33], kind=2),
    "cut short": start(1) + tensor("t", [1 << 40, 1 << 20]),
    "not a multiple of 32": start(1) + tensor("t", [1], offset=4) + bytes(64),
    "tensor 't' twice": start(2) + tensor("t", [1]) + tensor("t", [1], offset=32) + bytes(128),
    "'s' and 't' overlapping": start(2) + tensor("s", [9]) + tensor("t", [1], offset=32) + bytes(128),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damage_is_named(tmp_path: Path, message: str):
    (tmp_path / "x.gguf").write_bytes(DAMAGED[message])
    with pytest.raises(BadCheckpoint, match=message):
        Gguf(tmp_path / "x.gguf")


def attempt(path: Path, data: bytes) -> bool:
    """Whether it was read. Anything but BadCheckpoint gets out and fails the test."""
    path.write_bytes(data)
    try:
        found = Gguf(path)
    except BadCheckpoint:
        return False
    for name, entry in found.tensors.items():
        assert found.raw(name).numel() == entry.nbytes
    return True


def test_cut_at_every_byte_it_is_refused(file: Path):
    data = file.read_bytes()
    last = max(entry.offset + entry.nbytes for entry in Gguf(file).tensors.values())
    for size in range(0, len(data), 3):
        assert attempt(file, data[:size]) == (size >= last), size


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, file: Path, flips: list[tuple[int, int]]
):
    original = file.read_bytes()
    data = bytearray(original)
    for at, value in flips:
        data[at % len(data)] = value
    attempt(file, bytes(data))
    file.write_bytes(original)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=300))
def test_noise_behind_an_honest_opening_does_no_harm(tmp_path: Path, rest: bytes):
    attempt(tmp_path / "x.gguf", start(1, 1) + rest)


def test_a_file_is_opened_and_a_folder_is_not(file: Path):
    found = opened(str(file))
    assert isinstance(found, Gguf)
    assert found.path == file
    assert opened(file.parent) == file.parent
    (folder := file.parent / "folder.gguf").mkdir()
    assert opened(folder) == folder


def held(file: Path) -> int:
    """KiB that this process has of a file it maps."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.endswith(str(file))]
    return sum(int(next(line for line in lines[n:] if line.startswith("Rss:")).split()[1]) for n in starts)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_what_was_read_can_be_let_go_and_read_again(tmp_path: Path):
    numbers = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    file = write_gguf(tmp_path / "large.gguf", "llama", METADATA, {"one": numbers})
    source = Gguf(file)
    first = source.raw("one").clone()
    assert held(file) > 4000
    source.release("one")
    assert held(file) < 100
    assert torch.equal(source.raw("one"), first)
