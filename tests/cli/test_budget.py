"""`headrace optimize` with a budget."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from headrace.base.errors import Refused
from headrace.bench import judge as judging
from headrace.bench.estimate import Estimate
from headrace.bench.judge import Trial
from headrace.cli import _budget
from headrace.cli._budget import Asked, Search, run
from headrace.optimize.losses import read
from headrace.optimize.recipe import Recipe
from headrace.optimize.sensitivity import folder_for
from headrace.optimize.work import folder_of
from tests.cli.conftest import Command
from tests.optimize import small

SCHEMES = "w4a16_g32,w8a16"
MEASURE = ["--schemes", SCHEMES, "--sensitivity-tokens=256", "--algorithm=rtn"]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model m and a text."""
    made = tmp_path_factory.mktemp("budget")
    small.model(made / "m", num_hidden_layers=2)
    small.text(made / "words.txt")
    return made


def words(at: Path, out: Path, *more: str) -> list[str]:
    texts = ["--text", str(at / "words.txt"), "--samples=4", "--tokens=24"]
    return ["optimize", str(at / "m"), "-o", str(out), *texts, *more]


def test_bits(command: Command, at: Path, tmp_path: Path):
    out = tmp_path / "out"
    ask = words(at, out, *MEASURE, "--target-bits=7")
    code, _, err = command(*ask, "--dry-run")
    assert code == 0, err
    assert "8 layers are tried in 2.0 schemes each" in err
    assert "taken" in err
    assert "all w4a16_g32" in err
    assert "will become about" in err
    assert not out.exists()

    code, _, err = command(*ask, "--no-eval")
    assert code == 0, err
    found = json.loads((out / "budget.json").read_text())
    assert 6 < found["taken"]["bits"] <= 7
    assert found["budget"] == {"bits": 7}
    recipe = Recipe.read(out / "recipe.yaml")
    assert {recipe.scheme, *(choice.scheme for _, choice in recipe.layers)} == {"w4a16_g32", "w8a16"}
    report = json.loads((out / "report.json").read_text())
    assert [point["taken"] for point in report["frontier"]].count(True) == 1
    assert report["sensitivity"] == read(out).table()
    assert "Frontier" in (out / "report.html").read_text()
    assert not folder_of(folder_for(out)).exists()

    # From the numbers of that run another size, with nothing measured.
    other = tmp_path / "other"
    code, _, err = command(
        *words(at, other, "--algorithm=rtn", "--device=cpu", "--no-eval"),
        f"--sensitivity={out}",
        "--target-bits=6",
    )
    assert code == 0, err
    assert "are tried" not in err
    assert json.loads((other / "budget.json").read_text())["taken"]["bits"] <= 6


def test_latency(command: Command, at: Path, tmp_path: Path):
    ask = words(at, tmp_path / "out", *MEASURE, "--dry-run", "--device=l4")
    code, _, err = command(*ask, "--max-latency-ms=0.001")
    assert code == 2
    assert "0.001 ms per token cannot be reached on l4" in err
    least = float(err.split("hint: ask for --max-latency-ms ")[1].split()[0])
    code, _, err = command(*ask, f"--max-latency-ms={least}")
    assert code == 2  # so small a model is all overhead: nothing needs to be rounded
    assert "kept by the model as it is" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target-bits=3", *MEASURE], "3 bits per weight cannot be reached"),
        (["--target-bits=5", "--max-kl=1", *MEASURE], "2 budgets are given"),
        (["--target-bits=5", "--scheme=w8a16"], "a scheme for all layers and --target-bits are both given"),
        (["--target-bits=-5", *MEASURE], "target_bits is -5.0"),
        (["--device=h200"], "device 'h200' is not known"),
        (["--schemes=w8a16"], "--schemes is for a search"),
        (["--target-bits=5", "--sensitivity=x", "--sensitivity-tokens=512"], "was measured already"),
        (["--target-bits=5", "--sensitivity-tokens=0"], "0 tokens are too few"),
        (["--target-bits=5", "--sensitivity=nowhere"], "holds no measured sensitivity"),
        (["--max-latency-ms=5", "--device=h2000"], "h2000"),
    ],
)
def test_refused(command: Command, at: Path, tmp_path: Path, more: list[str], said: str):
    code, _, err = command(*words(at, tmp_path / "out", *more))
    assert code == 2
    assert said in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_killed_while_it_is_compared_it_goes_on_there(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, search = tmp_path / "out", Search(target_bits=7, schemes=SCHEMES, sensitivity_tokens=256)
    monkeypatch.setattr(judging, "judge", lambda *words, **known: [][0])
    with pytest.raises(IndexError):
        run(asked(at, out), search)
    hashes = small.hashes(out)
    assert {"sensitivity.json", "budget.json", "model.safetensors"} <= set(hashes)
    monkeypatch.undo()
    monkeypatch.setattr("headrace.optimize.sensitivity.measure", lambda *asked: pytest.fail("measured twice"))
    with pytest.raises(Refused, match="exists already"):
        run(asked(at, out), replace(search, target_bits=6))  # is another result
    story = run(asked(at, out), search)
    assert story is not None
    assert small.hashes(out) == hashes
    report = json.loads((out / "report.json").read_text())
    assert report["quality"][0]["tokens"] == 80
    assert report["frontier"]
    assert not folder_of(folder_for(out)).exists()
    with pytest.raises(Refused, match="exists already"):
        run(asked(at, out), search)


# -- a KL that must be kept: the first try measures too much ------------------------------------------------------


def asked(at: Path, out: Path) -> Asked:
    base = small.recipe(at / "words.txt")
    trial = Trial((str(at / "words.txt"),), tokens=40, windows=2, generated=0)
    recipe = Recipe(None, base.passes, (), base.calibration, "float32")
    return Asked(str(at / "m"), out, recipe, "cpu", False, False, trial, Console(stderr=True))


def measured(monkeypatch: pytest.MonkeyPatch, factors: list[float]) -> None:
    """The report's KL is the foreseen one times the next of these."""
    true = judging.judge

    def judge(outcome: Any, config: Any, trial: Any, notify: Any, **known: Any) -> Any:
        story = true(outcome, config, trial, notify, **known)
        foreseen = next(point.loss for point in known["frontier"] if point.taken)
        rows = [row._replace(kl=Estimate(foreseen * factors.pop(0), 0.0)) for row in story.quality]
        return replace(story, quality=rows)

    monkeypatch.setattr(judging, "judge", judge)


SEARCH = Search(max_kl=1e-4, schemes=SCHEMES, sensitivity_tokens=256)


def test_a_kl_is_kept_in_truth(at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    measured(monkeypatch, [2.5, 0.9])
    story = run(asked(at, out), SEARCH)
    assert story is not None
    assert story.outcome.out == out
    found = json.loads((out / "budget.json").read_text())
    assert found["budget"] == {"kl": 1e-4}
    assert found["taken"]["kl"] <= 0.9 / 2.5 * 1e-4 * (1 + 1e-9)  # it had to be tightened
    assert (out / "model.safetensors").is_file()
    assert f'"out": "{out}"' in (out / "report.json").read_text()
    assert not folder_of(folder_for(out)).exists()


def test_a_kl_that_is_kept_already_is_not_sought_again(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    measured(monkeypatch, [0.9])
    run(asked(at, out), SEARCH)
    hashes = small.hashes(out)
    with pytest.raises(Refused, match="exists already"):
        run(asked(at, out), SEARCH)
    assert small.hashes(out) == hashes
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_killed_search_tries_nothing_twice(at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    measured(monkeypatch, [2.5])  # and an error where the second is to be measured
    with pytest.raises(IndexError):
        run(asked(at, out), SEARCH)
    assert not out.exists()
    monkeypatch.undo()
    tried: list[str] = []
    true = _budget.made

    def made(asked: Any, recipe: Any, at: Path, beside: Any) -> Any:
        tried.append(at.name)
        return true(asked, recipe, at, beside)

    def execute(*job: Any) -> None:
        raise AssertionError("it was made already, and had only to be measured")

    monkeypatch.setattr(_budget, "made", made)
    monkeypatch.setattr("headrace.optimize.run.execute", execute)
    measured(monkeypatch, [0.5])
    assert run(asked(at, out), SEARCH) is not None
    assert tried == ["try-1"]


def test_a_kl_that_is_never_kept_is_refused(at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    measured(monkeypatch, [2 * 3.0**n for n in range(10)])
    monkeypatch.setattr(_budget, "_bound", lambda tries, most: most)
    with pytest.raises(Refused, match="was not reached in 4 tries"):
        run(asked(at, out), SEARCH)
    assert not out.exists()
