"""Calibration windows: the same for the same seed, never overlapping, never what quality is measured on."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from headrace.base.errors import Refused
from headrace.bench import texts as judged
from headrace.optimize import calibrate
from headrace.optimize.calibrate import KNOWN, Calibration, fingerprint
from headrace.text.tokenizer import Tokenizer
from tests import tiny
from tests.optimize import small


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return tiny.tokenizer(model)


def test_windows_are_stretches_of_the_text_that_do_not_overlap(text: Path, tokenizer: Tokenizer):
    found = Calibration(9, 40, 0, (str(text),)).windows(tokenizer)
    assert found.shape == (9, 40)
    said = text.read_text()
    places = [said.index(tokenizer.decode(row.tolist())) for row in found]
    assert len(set(places)) == 9
    assert all(place % 40 == 0 for place in places)


def test_the_seed_decides(text: Path, tokenizer: Tokenizer):
    same, again, other = (Calibration(9, 40, seed, (str(text),)).windows(tokenizer) for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert fingerprint(same) == fingerprint(again) != fingerprint(other)


def test_texts_give_as_many_each_or_all_they_have(tmp_path: Path, text: Path, tokenizer: Tokenizer):
    (tmp_path / "short").write_text("#" * 85)
    found = Calibration(10, 40, 0, (str(text), str(tmp_path / "short"))).windows(tokenizer)
    hashes = [tokenizer.decode(row.tolist()) == "#" * 40 for row in found]
    assert sum(hashes) == 2
    assert hashes[:4] == [False, True, False, True]


def test_windows_begin_as_the_model_wants_texts_to(
    text: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    plain = tokenizer.encode

    def encode(said: str, add_special_tokens: bool = True) -> list[int]:
        return ([1] if add_special_tokens else []) + plain(said)

    monkeypatch.setattr(tokenizer, "encode", encode)
    monkeypatch.setattr(tokenizer, "bos_id", 1)
    found = Calibration(5, 40, 0, (str(text),)).windows(tokenizer)
    assert found.shape == (5, 40)
    assert found[:, 0].tolist() == [1] * 5
    assert not bool((found[:, 1:] == 1).any())


def test_a_text_that_is_too_short_says_how_many_windows_it_has(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "short").write_text("#" * 85)
    with pytest.raises(Refused, match="have 2 windows of 40 tokens; 3 are asked for"):
        Calibration(3, 40, 0, (str(tmp_path / "short"),)).windows(tokenizer)
    with pytest.raises(Refused, match="have 0 windows"):
        Calibration(3, 100, 0, (str(tmp_path / "short"),)).windows(tokenizer)


@pytest.mark.parametrize(
    ("name", "value"), [("samples", -1), ("tokens", 8), ("seed", -1), ("samples", 1.5), ("tokens", True)]
)
def test_numbers_that_cannot_be(name: str, value: object):
    with pytest.raises(Refused, match=f"calibration {name}"):
        Calibration(**{name: value})  # type: ignore[arg-type]


def test_too_many_tokens_and_no_texts():
    with pytest.raises(Refused, match="too many"):
        Calibration(1 << 20, 1 << 20)
    with pytest.raises(Refused, match="no texts"):
        Calibration(texts=())


def test_nothing_is_measured_on_that_is_calibrated_with():
    """Where both take the same file, they take different items of it."""
    raw = {
        "gsm8k": b"\n".join(json.dumps({"question": f"Q{n}.", "answer": ""}).encode() for n in range(1319)),
        "humaneval": gzip.compress(
            b"\n".join(
                json.dumps({"prompt": f"Q{n}.", "canonical_solution": ""}).encode() for n in range(164)
            )
        ),
    }
    files = {known.wheel.member: name for name, known in judged.KNOWN.items()}
    shared = {name for name, known in KNOWN.items() if known.wheel.member in files}
    assert shared == {"gsm8k", "humaneval"}
    for name in shared:
        ours, theirs = (set(table[name].assemble(raw[name]).split()) for table in (KNOWN, judged.KNOWN))
        items = {word for word in ours | theirs if word.startswith("Q") and word != "Question:"}
        assert items
        assert not ours & theirs & items
        assert len(items) == {"gsm8k": 1319, "humaneval": 164}[name]


def test_transcripts_are_said_once():
    case = {"messages": [{"content": "a"}, {"content": "b"}]}
    raw = json.dumps(
        {"cases": [case, {"messages": [*case["messages"], {"content": "c"}, {"content": None}]}]}
    )
    assert KNOWN["agents"].assemble(raw.encode()) == "a\n\nb\n\nc"


def test_a_long_text_is_read_in_part(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "CHARACTERS", 100)
    long = small.text(tmp_path / "long")
    long.write_bytes(long.read_bytes() + b"\xff")  # which is not read
    with pytest.raises(Refused, match="have 2 windows"):
        Calibration(3, 40, 0, (str(long),)).windows(tokenizer)
