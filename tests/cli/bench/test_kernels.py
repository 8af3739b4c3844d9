"""`headrace bench kernels` where there is no GPU, and the table it prints where there is one."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from headrace.bench.result import Result
from headrace.cli.main import run

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
@pytest.mark.parametrize("words", [[], ["decode", "--shape", "qwen3-0.6b"], ["--tune"]])
def test_without_a_gpu_it_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "kernels", *words]) == 2
    said = capsys.readouterr().err
    assert "CUDA device" in said
    assert "headrace doctor" in said


def test_a_table_to_write_is_of_no_use_without_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "kernels", "--table", str(tmp_path / "t.json")]) == 2
    assert "--tune" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--compare", "--deterministic", "--kv-dtype"])
def test_tuning_heeds_no_flag_of_measuring(flag: str, capsys: pytest.CaptureFixture[str]):
    words = {"--deterministic": [], "--kv-dtype": ["fp8"]}.get(flag, ["r.json"])
    assert run(["bench", "kernels", "--tune", flag, *words]) == 2
    assert "leave out --deterministic, --kv-dtype" in capsys.readouterr().err


def test_the_table_has_a_line_for_every_case():
    pytest.importorskip("triton")
    from headrace.bench.kernels import Outcome, Selection
    from headrace.bench.replay import Limits, Took
    from headrace.cli.bench.kernels import shown

    cases = Selection(("norm",), ("qwen3-0.6b",)).cases()
    timed, alone, wrong, *_ = (Outcome(shape, case, 0.0) for shape, case in cases)
    timed = timed._replace(took=Took(4.0, 0.0), library=Took(6.0, 0.0))
    alone = alone._replace(took=Took(100.0, 0.0))
    console = Console(width=150, record=True, file=StringIO())
    console.print(shown([timed, alone, wrong._replace(error=0.5)], Limits(2e9, 1e12)))
    lines = console.export_text().splitlines()
    assert any("1 tokens" in line and "1.50x" in line and "4.0" in line for line in lines)
    assert any("32 tokens" in line and "100.0" in line for line in lines)
    assert any("not timed" in line and "5.0e-01" in line for line in lines)


def test_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What is right is written and compared; what is wrong makes it fail."""
    pytest.importorskip("triton")
    from headrace.bench import kernels, replay

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(replay, "limits", lambda: replay.Limits(1e12, 1e14))
    errors, us = [0.0, 0.0, 0.0, 0.0], 5.0

    def timed(outcome: kernels.Outcome) -> kernels.Outcome:
        return outcome._replace(took=replay.Took(us, 0.0))

    monkeypatch.setattr(kernels, "_check_all", lambda selection, count: errors)
    monkeypatch.setattr(kernels, "_timed", timed)
    words = ["bench", "kernels", "norm", "--shape", "qwen3-0.6b"]
    assert run([*words, "--output", str(tmp_path / "a.json")]) == 0
    first = Result.read(tmp_path / "a.json", "kernels")
    assert first.machine["gpu"] == "a GPU"
    assert first.settings["bandwidth"] == 1e12
    assert [m.value for m in first.measures if m.unit == "us"] == [5.0] * 4
    capsys.readouterr()
    us, errors[1] = 10.0, 1.0
    assert run([*words, "--deterministic", "--compare", str(tmp_path / "a.json")]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("worse") == 6
    assert "qwen3-0.6b norm 32 tokens" in shown.err
    assert run(["bench", "kernels", "norn"]) == 2
