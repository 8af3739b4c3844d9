"""Files that people name: what is no file with an end is refused before it is opened."""

import os
from pathlib import Path

import pytest

from headrace.base import text_file
from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json
from headrace.base.text_file import check, read_bytes, read_text


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_text("\u00e4b", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (read_text("~/a", "x"), read_bytes("~/a", "x")) == ("\u00e4b", b"\xc3\xa4b")


@pytest.mark.parametrize("read", [read_text, read_bytes, check])
def test_what_may_have_no_end_is_not_opened(read, pipe: Path):
    for path in (pipe, Path("/dev/zero"), Path("/dev/urandom")):
        with pytest.raises(Refused, match="a pipe or a device; expected a regular file") as refused:
            read(path, "recipe")
        assert refused.value.message.startswith(f"{path} cannot be read: ")
        assert (refused.value.param, refused.value.exit_code) == ("recipe", 2)
        assert "to a file" in refused.value.hint


@pytest.mark.parametrize("read", [read_text, read_bytes])
def test_what_cannot_be_opened_is_refused_with_what_may_be_given(read, tmp_path: Path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(Refused, match=f"cannot be read: {why}") as refused:
            read(path, "recipe", "give a YAML file")
        assert (refused.value.param, refused.value.hint) == ("recipe", "give a YAML file")


def test_a_file_that_memory_has_no_room_for_is_read_in_part_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(text_file, "LARGEST", 3)
    path = tmp_path / "large"
    path.write_text("abcd")
    for read in (read_text, read_bytes):
        with pytest.raises(Refused, match="it has 4 bytes; expected at most 3"):
            read(path, "text")
    assert read_text(path, "text", first=2) == "ab"


def test_what_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"a\xff")
    with pytest.raises(Refused, match="it is not UTF-8"):
        read_text(tmp_path / "a", "text")


def test_a_configuration_is_a_file_too(pipe: Path):
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(BadCheckpoint, match="is a pipe or a device"):
            read_json(path)
