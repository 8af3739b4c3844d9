"""`headrace eval tasks`."""

import json
from collections.abc import Callable

import pytest

from tests.tiny import folder

Command = Callable[..., tuple[int, str, str]]
TINY = ["--threads=1", "--memory.share=0.05", "--memory.kv-blocks=80"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    at = tmp_path_factory.mktemp("models")
    items = [{"context": f"It is {n}", "choices": ["yes", "no!"], "answer": n % 2} for n in range(6)]
    (at / "own.jsonl").write_text("\n".join(map(json.dumps, items)))
    return str(folder(at / "base")), str(folder(at / "other", seed=1)), str(at / "own.jsonl")


def test_one_model(command: Command, files: tuple[str, str, str]):
    base, _, own = files
    code, out, err = command("eval", "tasks", base, "--task", own, *TINY)
    assert (code, err) == (0, "")
    for said in ("own", "accuracy per character", "%", "one standard error"):
        assert said in out
    assert "McNemar" not in out


def test_two_models(command: Command, files: tuple[str, str, str]):
    base, other, own = files
    code, out, _ = command("eval", "tasks", base, other, "--task", own, *TINY)
    assert code == 0
    assert "McNemar" in out
    code, out, _ = command("eval", "tasks", base, other, "--task", own, "--limit=4", "--json", *TINY)
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
def test_what_cannot_be_done(words: list[str], said: str, command: Command, files: tuple[str, str, str]):
    more = [] if "--task" in words else ["--task", files[2]]
    code, _, err = command("eval", "tasks", files[0], *words, *more, *TINY)
    assert code == 2
    assert said in err
