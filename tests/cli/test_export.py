"""`headrace export`."""

from pathlib import Path

from headrace.checkpoint.config import read_config
from headrace.models.llama import TINY
from tests import tiny as models
from tests.cli.conftest import Command


def folder(at: Path) -> Path:
    return models.folder(at / "m", {**TINY, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16})


def test_it_writes_a_file_and_says_how_large_it_is(command: Command, tmp_path: Path):
    file = tmp_path / "x.gguf"
    code, out, _ = command("export", str(folder(tmp_path)), "-o", str(file), "--scheme", "q4_0")
    assert code == 0
    assert out == f"{file}  {file.stat().st_size / 1e6:.1f} MB\n"
    assert read_config(file)["hidden_size"] == 64


def test_it_overwrites_nothing(command: Command, tmp_path: Path):
    (tmp_path / "x.gguf").write_text("mine")
    code, out, err = command("export", str(folder(tmp_path)), "--output", str(tmp_path / "x.gguf"))
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert "hint: give the path of a new file" in err


def test_other_schemes_are_no_choice(command: Command, tmp_path: Path):
    code, _, err = command("export", str(tmp_path), "-o", str(tmp_path / "x.gguf"), "--scheme", "q6_k")
    assert code == 2
    assert "q8_0" in err
