"""`headrace eval kl`."""

import json

import pytest

from tests.cli.conftest import Command
from tests.cli.eval.conftest import SMALL


def test_a_table(command: Command, models: tuple[str, str], text: str):
    texts = ("--text", text, text.replace("own", "./own"))
    code, out, err = command("eval", "kl", *models, *texts, "--tokens=40", *SMALL)
    assert (code, err) == (0, "")
    for said in ("mean KL", "top-1", "all", "±", "one standard error"):
        assert said in out


def test_a_model_against_itself_rounded_as_json(command: Command, models: tuple[str, str], text: str):
    base, _ = models
    words = ("--quantization=w8a8", "--text", text, "--tokens=40", "--windows=2", "--json")
    code, out, _ = command("eval", "kl", base, *words, *SMALL)
    assert code == 0
    said = json.loads(out)
    (row,) = said["rows"]
    assert (row["model"], row["kept"], row["tokens"]) == (base, "w8a8", 80)
    assert 0 < row["kl"]["value"] < 0.1
    names = {measure["name"].rpartition(": ")[2] for measure in said["measures"]}
    assert names <= {"KL", "KL p99", "top-1", "perplexity"}
    assert said["settings"]["dtype"] == "float32"


def test_several_models_in_one_run(command: Command, models: tuple[str, str], text: str):
    words = ("--text", text, "--tokens=40", "--json")
    code, out, _ = command("eval", "kl", *models, models[0], *words, *SMALL)
    assert code == 0
    far, near = json.loads(out)["rows"]
    assert far["kl"]["value"] > 0.01
    assert near["kl"]["value"] == 0
    assert near["ratio"] == {"value": 1, "error": 0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to compare with"),
        (["--model", "x", "{other}"], "with --model"),
        (["{other}", "--tokens", "0"], "--tokens is 0"),
        (["{other}", "--windows=-1"], "--windows is -1"),
        (["{other}", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["{other}", "--tokens", "100000"], "can predict"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done(
    words: list[str], said: str, command: Command, models: tuple[str, str], text: str
):
    base, other = models
    more = [] if "--text" in words else ["--text", text]
    code, _, err = command("eval", "kl", base, *(word.format(other=other) for word in words), *more, *SMALL)
    assert code == 2
    assert said in err
