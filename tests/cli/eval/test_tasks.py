"""`headrace eval tasks`."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.eval.conftest import SMALL


@pytest.fixture
def own(tmp_path: Path) -> str:
    items = [{"context": f"It is {n}", "choices": ["yes", "no!"], "answer": n % 2} for n in range(6)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, items)))
    return str(tmp_path / "own.jsonl")


def test_one_model(command: Command, models: tuple[str, str], own: str):
    code, out, err = command("eval", "tasks", models[0], "--task", own, *SMALL)
    assert (code, err) == (0, "")
    for said in ("own", "accuracy per character", "%", "one standard error"):
        assert said in out
    assert "McNemar" not in out


def test_two_models(command: Command, models: tuple[str, str], own: str):
    base, other = models
    code, out, _ = command("eval", "tasks", base, other, "--task", own, *SMALL)
    assert code == 0
    assert "McNemar" in out
    code, out, _ = command("eval", "tasks", base, other, "--task", own, "--limit=4", "--json", *SMALL)
    rows = json.loads(out)["rows"]
    assert [row.get("model") for row in rows] == [base, base, other, other, None, None]
    before, after, gap = rows[0], rows[2], rows[4]
    assert before["items"] == len(before["right"]) == 4
    assert gap["estimate"]["value"] == pytest.approx(after["score"]["value"] - before["score"]["value"])
    assert 0 < gap["p"] <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit=-1"], "--limit is -1"),
        (["--task", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--task", "helaswag"], "hellaswag"),
    ],
)
def test_what_cannot_be_done(
    words: list[str], said: str, command: Command, models: tuple[str, str], own: str
):
    more = [] if "--task" in words else ["--task", own]
    code, _, err = command("eval", "tasks", models[0], *words, *more, *SMALL)
    assert code == 2
    assert said in err
