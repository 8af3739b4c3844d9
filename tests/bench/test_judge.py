"""A result is judged against its base, and the report lies beside the weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.bench.judge import Trial, judge, lines, save
from headrace.bench.report_optimize import Point
from tests.bench.made_story import outcome, story
from tests.tiny import config, folder

TEXT = "The water of the headrace reaches the wheel, and the wheel turns. " * 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    at = tmp_path_factory.mktemp("models")
    return folder(at / "base"), folder(at / "out", seed=1)


def test_all_of_it(made: tuple[Path, Path], tmp_path: Path):
    base, out = made
    (tmp_path / "t.txt").write_text(TEXT)
    told: list[str] = []
    trial = Trial((str(tmp_path / "t.txt"),), tokens=40, windows=2, generated=4)
    found = judge(
        outcome(2, out, str(base)),
        config(base),
        trial,
        lambda stage, part: told.append(stage),
        sensitivity={"model.layers.0.mlp.up_proj": {"w8a16": 0.1}},
        frontier=[Point(4.0, 0.1)],
    )
    (row,) = found.quality
    assert (row.windows, row.tokens) == (2, 80)
    assert row.kl.value > 0.01
    assert found.speed is not None
    assert found.speed[0].kept == "none, float32"
    assert "comparing with the base" in told
    assert "timing one stream" in told
    said = json.loads((out / "report.json").read_text())
    assert said["quality"][0]["tokens"] == 80
    assert said["run"]["settings"]["device"] == "cpu"
    page = (out / "report.html").read_text()
    assert "Frontier" in page
    assert "Sensitivity" in page
    first, speed, last = lines(found)
    assert "80 tokens: perplexity" in first
    assert "tokens per second" in speed
    assert last == f"report: {out / 'report.html'}"


def test_a_model_that_reads_less_than_a_window_is_judged_by_what_it_reads(
    made: tuple[Path, Path], tmp_path: Path
):
    base, out = made
    (tmp_path / "t.txt").write_text(TEXT)
    found = judge(
        outcome(2, out, str(base)), config(base), Trial((str(tmp_path / "t.txt"),), windows=1, generated=0)
    )
    assert found.quality[0].tokens == 255


def test_what_is_not_asked_for_is_not_measured(made: tuple[Path, Path]):
    base, out = made
    found = judge(outcome(2, out, str(base)), config(base), Trial(texts=(), generated=0))
    assert found.quality == []
    assert found.speed is None
    assert lines(found) == [f"report: {out / 'report.html'}"]


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match="cannot be written"):
        save(replace(story(2)), tmp_path / "nowhere")
