"""The parts of reports."""

from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.bench.page import settings, write


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match="cannot be written"):
        write(tmp_path / "no" / "such.html", "")


def test_settings_are_escaped_and_what_is_unknown_is_left_out():
    text = settings({"<a>": "&", "b": None})
    assert "<td>&lt;a&gt;</td><td>&amp;</td>" in text
    assert "b</td>" not in text
