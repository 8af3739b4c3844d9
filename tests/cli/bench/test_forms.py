"""`headrace bench forms`: what it writes, which tokenizer it takes, and what it refuses."""

import json
from pathlib import Path

import pytest

from headrace.bench.shapes import SHAPES
from headrace.engine import constrain
from headrace.models.llama import TINY
from tests.cli.conftest import SMALL, Command

FEW = ("--requests=3", "--tokens-in=5", "--tokens-out=6", "--rounds=1")
NAMES = [
    *(f"{kind}: output" for kind in ("no form", "met before", "new")),
    *(f"{kind}: against no form" for kind in ("met before", "new")),
]


def test_a_result_is_shown_and_written(command: Command, tiny: Path, tmp_path: Path):
    code, out, err = command("bench", "forms", str(tiny), *FEW, *SMALL, f"--output={tmp_path}/r.json")
    assert code == 0, err
    said = json.loads((tmp_path / "r.json").read_text())
    assert (said["benchmark"], said["settings"]["model"]) == ("forms", str(tiny))
    assert said["settings"]["requests"] == 3
    assert [m["name"] for m in said["measures"]] == NAMES
    assert all(m["value"] > 0 for m in said["measures"])
    assert all(kind in out for kind in ("no form", "met before", "new"))
    assert out.count(" x (") == 2


def test_a_shape_may_have_more_words_than_the_tokenizer(
    command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SHAPES, "small", TINY | {"vocab_size": 1000, "eos_token_id": 999})
    words = *FEW, *SMALL, "--shape=small", f"--tokenizer={tiny}", "--max-len=128"
    code, _, err = command("bench", "forms", *words, f"--output={tmp_path}/r.json")
    assert code == 0, err
    settings = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert (settings["model"], settings["tokenizer"]) == ("small", str(tiny))


def test_an_answer_that_went_wrong_makes_it_fail(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constrain, "SLOW_STEP", -1.0)
    monkeypatch.setattr(constrain, "SLOW_MASK", -1.0)
    code, out, err = command("bench", "forms", *FEW, f"--output={tmp_path}/r.json", small=True)
    assert (code, out) == (1, "")
    assert "3 of 3 answers ended with error" in err
    assert not (tmp_path / "r.json").exists()


def test_a_model_without_words_is_refused_before_it_is_loaded(
    command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.cli.bench.forms.load", lambda _: pytest.fail("it is loaded"))
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    code, _, err = command("bench", "forms", str(tmp_path), "--dummy-weights")
    assert code == 2
    assert "forms need a tokenizer: no tokenizer.json and no tokenizer.model in" in err
    assert "--tokenizer" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--tokenizer=no-such-words", "--shape=qwen3-0.6b"],
            "forms need a tokenizer: unknown model 'no-such-words'",
        ),
        (["no-such-model"], "error: unknown model 'no-such-model'"),
        (["no-such-model", "--shape=qwen3-0.6b"], "both a model and --shape"),
        (["--shape=qwen3-0.7b"], "did you mean 'qwen3-0.6b'"),
        (["--requests=0"], "--requests is 0"),
        (["--requests=257"], "expected at most 256"),
        (["--rounds=0"], "--rounds is 0"),
        (["--tokens-in=0"], "--tokens-in is 0"),
        (["--temperature=-1", "no-such-model"], "temperature is -1.0"),
    ],
)
def test_refused(words: list[str], said: str, command: Command):
    code, out, err = command("bench", "forms", *words)
    assert (code, out) == (2, "")
    assert said in err
