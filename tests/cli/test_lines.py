"""The two files of a batch."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.base.errors import Refused
from headrace.cli._lines import Answers, Line, count, read


def line(id: str, **more: object) -> str:
    return json.dumps({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": {}} | more)


def test_reading(tmp_path: Path):
    file = tmp_path / "in"
    file.write_text("\n".join([line("a"), "", "{", "[]", '{"custom_id": 3}', line("a", body=1), line("b")]))
    lines = list(read(file))
    assert [one.id for one in lines] == [f"batch_req_{n}" for n in (1, 3, 4, 5, 6, 7)]
    assert [one.custom_id for one in lines] == ["a", None, None, None, None, "b"]
    said = [one.wrong.message if one.wrong else None for one in lines]
    assert said[0] is said[5] is None
    assert [
        words in str(one)
        for words, one in zip(("not JSON", "not a JSON object", "no custom_id"), said[1:4], strict=True)
    ]
    assert "has the custom_id 'a' of line 1" in str(said[4])
    assert count(file) == len(lines)


def test_half_a_character_is_a_bad_line(tmp_path: Path):
    file = tmp_path / "in"
    file.write_bytes(b'{"custom_id": "\xff"}\n' + line("b").encode())
    bad, good = read(file)
    assert bad.wrong is not None
    assert good.custom_id == "b"


@pytest.mark.parametrize("do", [lambda path: list(read(path)), count])
def test_a_file_that_is_not_there(do: object, tmp_path: Path):
    with pytest.raises(Refused, match="cannot be read: No such file"):
        do(tmp_path / "nowhere")  # type: ignore[operator]


def test_what_is_added_is_found_again(tmp_path: Path):
    file = tmp_path / "out"
    answers = Answers(file)
    answers.add(Line("batch_req_1", "a"), {"response": {"text": "ü\n"}, "error": None})
    answers.add(Line("batch_req_2", None), {"response": {}, "error": {"message": "no"}})
    answers.close()
    again = Answers(file)
    assert again.done == {("custom_id", "a"), ("id", "batch_req_2")}
    again.close()
    assert [json.loads(one)["id"] for one in file.read_text().splitlines()] == ["batch_req_1", "batch_req_2"]


def test_a_custom_id_like_the_number_of_a_line_is_another_name(tmp_path: Path):
    answers = Answers(tmp_path / "out")
    answers.add(Line("batch_req_1", "batch_req_2"), {"error": None})
    answers.close()
    again = Answers(tmp_path / "out")
    again.close()
    assert Line("batch_req_7", "batch_req_2").name in again.done
    assert Line("batch_req_2", None).name not in again.done


def test_half_a_surrogate_pair_leaves_a_file_that_others_can_read(tmp_path: Path):
    answers = Answers(tmp_path / "out")
    answers.add(Line("1", "\ud800"), {"error": None})
    answers.close()
    assert json.loads((tmp_path / "out").read_text(encoding="utf-8"))["custom_id"] == "\ud800"
    again = Answers(tmp_path / "out")
    assert again.done == {("custom_id", "\ud800")}
    again.close()


@pytest.mark.parametrize("left", ['{"custom_id": "b", "err', '{"custom_id": "b", "error": null}', "\0\0\0"])
def test_a_torn_last_line_is_cut_off(left: str, tmp_path: Path):
    file = tmp_path / "out"
    whole = '{"id": "1", "custom_id": "a", "error": null}\n'
    file.write_text(whole + left)
    answers = Answers(file)
    assert answers.done == {("custom_id", "a")}
    answers.add(Line("2", "b"), {"error": None})
    answers.close()
    assert file.read_text() == whole + '{"id": "2", "custom_id": "b", "error": null}\n'


@pytest.mark.parametrize("foreign", ["my notes\n", "[1]\n", '{"id": 3}\n'])
def test_a_file_of_somebody_elses_is_left_as_it_is(foreign: str, tmp_path: Path):
    file = tmp_path / "out"
    file.write_text(foreign)
    with pytest.raises(Refused, match="line 1 is not an answer of a batch"):
        Answers(file)
    assert file.read_text() == foreign


@pytest.mark.parametrize("do", [count, Answers])
def test_what_cannot_be_read_again_is_no_file_of_a_batch(do: Callable[[Path], object], tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):  # the one would wait, the other has no end
        with pytest.raises(Refused, match="a pipe or a device"):
            do(path)


def test_a_folder_cannot_be_written(tmp_path: Path):
    with pytest.raises(Refused, match="cannot be written: Is a directory"):
        Answers(tmp_path)


def test_a_full_disk_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = Answers(tmp_path / "out")

    def full(raw: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers, "_write", full)
    with pytest.raises(Refused, match="No space left"):
        answers.add(Line("1", "a"), {})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Refused, match="No space left"):
        answers.close()
