"""Files of results."""

from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.bench.files import check_writable, write


def test_what_is_written_is_read(tmp_path: Path):
    write(tmp_path / "a", "\u00e4")
    assert (tmp_path / "a").read_bytes() == "\u00e4".encode()


def test_a_path_that_cannot_be_used_is_refused_with_its_flag(tmp_path: Path):
    with pytest.raises(Refused, match=r"such\.html cannot be written") as fault:
        write(tmp_path / "no" / "such.html", "", "html")
    assert fault.value.param == "html"


def test_what_was_there_stays_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a", "before")

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Refused, match="No space left"):
        write(tmp_path / "a", "after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "before")]


def test_a_device_is_written_to_and_stays_one():
    check_writable(Path("/dev/null"))
    write(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()


def test_what_cannot_be_written_is_known_before(tmp_path: Path):
    check_writable(tmp_path / "new.json")
    for path, why in ((tmp_path, "it is a folder"), (tmp_path / "no" / "such.csv", "is no folder")):
        with pytest.raises(Refused, match=why) as fault:
            check_writable(path, "csv")
        assert fault.value.param == "csv"
