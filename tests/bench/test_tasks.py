"""Items from files and packages, what counts as right, and the arithmetic of scores."""

import json
import math
from itertools import product
from pathlib import Path

import pytest

from headrace.base.errors import Refused, UnknownName
from headrace.bench import tasks
from headrace.bench.tasks import Choice, Question, Score, difference, number, read
from headrace.checkpoint import texts
from headrace.checkpoint.wheel import Wheel


def written(at: Path, *lines: object) -> str:
    at.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(at)


CHOICE = {"context": "a", "choices": ["b", "c"], "answer": 1}
QUESTION = {"prompt": "2+2=", "answer": "4"}


def test_files(tmp_path: Path):
    task = read(written(tmp_path / "own.jsonl", CHOICE, "", CHOICE | {"id": "second"}, CHOICE), limit=2)
    assert task.name == "own"
    assert task.items == [Choice("a", ("b", "c"), 1), Choice("a", ("b", "c"), 1, "second")]
    more = QUESTION | {"answer": ["4", "four"], "match": "number", "stop": [], "max_tokens": 3}
    task = read(written(tmp_path / "own.jsonl", QUESTION, more))
    assert task.items == [Question("2+2=", "4"), Question("2+2=", ("4", "four"), "number", (), 3)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: Expected `object`"),
        ({"prompt": "a"}, "missing required field `answer`"),
        (CHOICE | {"answer": 2}, "expected the index of one of 2 choices"),
        (CHOICE | {"answer": -1}, "expected the index"),
        (CHOICE | {"choices": ["b"]}, "at least two choices"),
        (CHOICE | {"context": " "}, "context is empty"),
        (CHOICE | {"chioces": []}, "unknown field `chioces`"),
        (QUESTION | {"match": "regex"}, "Invalid enum value 'regex'"),
        (QUESTION | {"prompt": ""}, "prompt is empty"),
        (QUESTION | {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_lines_that_will_not_do(line: object, said: str, tmp_path: Path):
    with pytest.raises(Refused) as caught:
        read(written(tmp_path / "own.jsonl", CHOICE, line))
    assert said in caught.value.message
    assert "docs/evaluate.md" in caught.value.hint


@pytest.mark.parametrize(("lines", "said"), [([CHOICE, QUESTION], "both"), ([""], "no items")])
def test_files_that_will_not_do(lines: list[object], said: str, tmp_path: Path):
    with pytest.raises(Refused, match=said):
        read(written(tmp_path / "own.jsonl", *lines))


def test_names_that_will_not_do():
    with pytest.raises(UnknownName, match="hellaswag"):
        read("helaswag")
    with pytest.raises(Refused, match="cannot be read"):
        read("nowhere.jsonl")


RAW = {
    "hellaswag": {
        "id": "h",
        "activity_label": "Bread",
        "ctx": "Bake [title] Knead.  [step] Then",
        "endings": ["eat.", "a [x]b"],
        "expected_index": 1,
    },
    "truthfulqa": {"id": "t", "question": "Who?", "choices": ["I", "you"], "expected_index": 0},
}
ITEMS = {
    "hellaswag": Choice("Bread: Bake. Knead. Then", ("eat.", "a b"), 1, "h"),
    "truthfulqa": Choice("Q: Who?\nA:", ("I", "you"), 0, "t"),
}


@pytest.mark.parametrize("name", ["hellaswag", "truthfulqa"])
def test_how_packages_become_items(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fetched(_: str, wheel: Wheel) -> Path:
        return Path(written(tmp_path / wheel.file_name, RAW[name], RAW[name]))

    monkeypatch.setattr(texts, "fetched", fetched)
    assert read(name).items == [ITEMS[name]] * 2
    assert len(read(name, 1).items) == 1


def test_gsm8k_asks_the_first_half_and_shows_the_second():
    lines = [{"question": f"q{n}?", "answer": f"#### {n}"} for n in range(1319)]
    items = tasks.KNOWN["gsm8k"].items("\n".join(map(json.dumps, lines)).encode())
    assert len(items) == 660
    last = items[-1]
    assert isinstance(last, Question)
    assert last.prompt.startswith("Question: q660?\nAnswer: #### 660\n\n")
    assert last.prompt.endswith("#### 664\n\nQuestion: q659?\nAnswer:")
    assert last.accepts("is 659.")


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("it is 1,234.50, not", 1234.5),
        ("3 and -4", -4),
        ("so\n#### 18 or 19", 18),
        ("#### none", None),
        ("", None),
        ("$70,000.", 70000),
        ("7", 7),
    ],
)
def test_numbers(said: str, value: float | None):
    assert number(said) == value


def test_what_is_accepted():
    assert Question("p", ("Yes", "y")).accepts("  yes \n")
    assert not Question("p", "yes").accepts("yes, it is")
    assert Question("p", "so\n#### 1,000", "number").accepts("it is $1000.00")
    assert not Question("p", "1", "number").accepts("one")


def test_the_error_of_a_share():
    assert Score("t", "m", (True, False, False, True)).estimate == (0.5, math.sqrt(0.25 / 3))
    assert math.isnan(Score("t", "m", (True,)).estimate.error)


def test_pairs():
    base = Score("t", "m", (True, True, False, True, False))
    other = Score("t", "m", (True, False, False, False, True))
    found = difference(base, other)
    assert (found.lost, found.won) == (2, 1)
    assert found.estimate.value == pytest.approx(-0.2)
    gaps = [0, -1, 0, -1, 1]
    spread = sum((gap + 0.2) ** 2 for gap in gaps) / 4
    assert found.estimate.error == pytest.approx(math.sqrt(spread / 5))
    assert found.p == 1
    assert difference(base, base).p == 1


@pytest.mark.parametrize(("lost", "won"), [(0, 5), (6, 1), (3, 3)])
def test_the_exact_probability_counts_all_splits(lost: int, won: int):
    n = lost + won
    base = Score("t", "m", (True,) * lost + (False,) * won)
    other = Score("t", "m", (False,) * lost + (True,) * won)
    uneven = sum(abs(2 * sum(flips) - n) >= abs(lost - won) for flips in product((0, 1), repeat=n))
    assert difference(base, other).p == pytest.approx(uneven / 2**n)
