"""Files of results."""

from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.bench.files import read, write


def test_what_is_written_is_read(tmp_path: Path):
    write(tmp_path / "a", "\u00e4")
    assert read(tmp_path / "a", "x") == "\u00e4".encode()


def test_a_path_that_cannot_be_used_is_refused_with_its_flag(tmp_path: Path):
    with pytest.raises(Refused, match=r"such\.html cannot be written") as fault:
        write(tmp_path / "no" / "such.html", "", "html")
    assert fault.value.param == "html"
    with pytest.raises(Refused, match="cannot be read"):
        read(tmp_path, "compare")
