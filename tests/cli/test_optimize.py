"""The command: what it says before it begins, what it refuses, what it makes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli import optimize
from tests.cli.conftest import Command
from tests.optimize import small


class Killed(BaseException):
    """What the tests interrupt a run with."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.model(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.text(tmp_path_factory.mktemp("t") / "words.txt")


def words(model: Path, text: Path, *more: str) -> list[str]:
    """A small run, with `more` flags or others instead of its own."""
    flags = {"--text": str(text), "--samples": "4", "--tokens": "24", "--device": "cpu"}
    kept = (word for name, value in flags.items() if name not in more for word in (name, value))
    return ["optimize", str(model), *kept, *more]


def test_a_dry_run_says_all_and_does_nothing(command: Command, model: Path, text: Path, tmp_path: Path):
    done = command(*words(model, text, "-o", str(tmp_path / "out"), "--dry-run"))
    assert done.code == 0
    said = " ".join(done.err.split())
    for expected in ("w4a16_g32", "model.embed_tokens", "as it is", "will become about", "of memory and"):
        assert expected in said
    assert "lm_head" in said
    assert not list(tmp_path.iterdir())
    assert command(*words(model, text, "--dry-run")).code == 0, "without a folder to write to"


def test_it_makes_a_folder(command: Command, model: Path, text: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = command(
        *words(model, text, "-o", str(out), "--algorithm", "awq,gptq", "--scheme", "w8a16", "--no-eval")
    )
    assert done.code == 0, done.err
    assert "became" in done.err
    assert "block 3 of 3" in done.err
    files = {"model.safetensors", "config.json", "recipe.yaml", "README.md"}
    assert files <= {file.name for file in out.iterdir()}
    recipe = (out / "recipe.yaml").read_text()
    assert "scheme: w8a16" in recipe
    assert "samples: 4" in recipe
    again = command(
        "optimize", str(model), "-o", str(tmp_path / "b"), "--recipe", str(out / "recipe.yaml"), "--no-eval"
    )
    assert again.code == 0, again.err
    assert small.hashes(out) == small.hashes(tmp_path / "b")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--scheme", "w4a16"], "groups of 128 do not divide 64 columns"),
        (["--scheme", "w4"], "unknown quantization scheme 'w4'"),
        (["--algorithm", "gtpq"], "did you mean 'gptq'"),
        (["--algorithm", "gptq,awq"], "make no sense in this order"),
        (["--algorithm", "awq"], "awq,gptq"),
        (["--samples", "1000"], "1000 are asked for"),
        (["--samples", "0", "--algorithm", "gptq"], "gptq needs calibration"),
        (["--tokens", "1000"], "this model reads 256 at most"),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--text", "/dev/zero"], "/dev/zero cannot be read: it is a pipe or a device"),
        (["--recipe", "/dev/zero"], "/dev/zero cannot be read: it is a pipe or a device"),
        (["--recipe", "nowhere.yaml", "--scheme", "w8a8"], "--recipe says scheme and algorithm"),
        (["--windows", "-1"], "--windows is -1"),
        (["--device", "abacus"], "'abacus' is not known"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_written(
    command: Command, model: Path, text: Path, tmp_path: Path, more: list[str], said: str
):
    done = command(*words(model, text, "-o", str(tmp_path / "out"), *more))
    assert done.code == 2
    assert said in done.err
    assert not list(tmp_path.iterdir())


def test_a_recipe_with_a_layer_that_is_not_there(command: Command, model: Path, text: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("layers: {model.layers.7.mlp.up_proj: w8a16}\npasses: [rtn]")
    done = command(
        *words(model, text, "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml"))
    )
    assert done.code == 2
    assert "matches no layer of this model" in done.err
    assert "did you mean 'model.layers" in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_without_calibration_it_rounds_to_nearest(command: Command, model: Path, tmp_path: Path):
    done = command("optimize", str(model), "-o", str(tmp_path / "out"), "--samples", "0", "--no-eval")
    assert done.code == 0, done.err
    assert "- rtn:" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_is_needed(command: Command, model: Path, text: Path):
    done = command(*words(model, text))
    assert done.code == 2
    assert "no folder to write to" in done.err


def test_a_folder_that_exists_stays(command: Command, model: Path, text: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    done = command(*words(model, text, "-o", str(tmp_path / "out")))
    assert done.code == 2
    assert "exists already" in done.err


def test_killed_while_it_is_compared_it_goes_on_there(
    command: Command, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    ask = words(model, text, "-o", str(out), "--windows=1", "--algorithm=rtn")
    trial = replace(optimize._trial(1, True), texts=(str(text),), tokens=40, generated=0)
    monkeypatch.setattr(optimize, "_trial", lambda windows, measure: trial)
    with monkeypatch.context() as killed:
        killed.setattr("headrace.bench.judge._quality", lambda *asked: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            command(*ask)
    made = small.hashes(out)
    done = command(*ask[:-1], "--algorithm=gptq")
    assert done.code == 2
    assert "exists already" in done.err, "what another recipe made is not judged as this one's"
    done = command(*ask)
    assert done.code == 0, done.err
    assert "is finished; what is left is to compare it" in " ".join(done.err.split())
    assert "40 tokens: perplexity" in " ".join(done.err.split())
    assert small.hashes(out) == made
    assert json.loads((out / "report.json").read_text())["quality"][0]["tokens"] == 40
    assert "Quality" in (out / "report.html").read_text()
    assert command(*ask).code == 2, "nothing is left to do"
