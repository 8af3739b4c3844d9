"""`headrace eval perplexity`."""

import json

import pytest

from tests.cli.conftest import Command
from tests.cli.eval.conftest import SMALL


def test_a_table(command: Command, text: str):
    code, out, err = command("eval", "perplexity", "--text", text, "--tokens", "50", small=True)
    assert (code, err) == (0, "")
    for said in ("perplexity", "standard error", "windows of 50 tokens"):
        assert said in " ".join(out.split())  # where a line is broken depends on the path in it


def test_json(command: Command, text: str):
    words = ("--text", text, text.replace("own", "./own"), "--tokens=50", "--windows=0", "--json")
    code, out, _ = command("eval", "perplexity", *words, small=True)
    said = json.loads(out)
    assert code == 0
    assert said["settings"]["windows"] == 0
    (first, again) = said["measures"]
    assert first["name"] == text
    assert first["value"] == pytest.approx(again["value"], rel=1e-4)
    assert 1 < first["value"] < 10000
    assert 0 < first["spread"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "0"], "--tokens is 0"),
        (["--windows=-1"], "--windows is -1"),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (
            ["--text", "/dev/zero"],
            "/dev/zero cannot be read: it is a pipe or a device; expected a regular file",
        ),
        (["--tokens", "1000"], "can predict 254 at once"),
    ],
)
def test_what_cannot_be_done(words: list[str], said: str, command: Command, text: str):
    more = [] if "--text" in words else ["--text", text]
    code, _, err = command("eval", "perplexity", *words, *more, small=True)
    assert code == 2
    assert said in err


def test_models_against_the_first(command: Command, models: tuple[str, str], text: str):
    base, other = models
    words = ("eval", "perplexity", base, other, "--text", text, "--tokens=50", *SMALL)
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "ratio" in out
    assert "one standard error" in out
    code, out, _ = command(*words, "--json")
    before, after = json.loads(out)["rows"]
    assert before["over_base"] is None
    ratio = after["perplexity"]["value"] / before["perplexity"]["value"]
    assert after["over_base"]["value"] == pytest.approx(ratio)
    assert [m["name"] for m in json.loads(out)["measures"]] == [f"{base}: {text}", f"{other}: {text}"]
