"""A work folder remembers what is done, belongs to one run at a time, and says so where the disk is full."""

import errno
import json
from pathlib import Path

import pytest
import torch

from headrace.base.errors import Refused
from headrace.optimize.work import RESULT, Hidden, Work, folder_of, room

IDENTITY = {"recipe": {"a": 1}, "model": "m"}


def test_what_was_noted_is_there_again(tmp_path: Path):
    with Work(tmp_path / "out", IDENTITY, False) as work:
        assert not work.resumed
        work.note(blocks=2)
    with Work(tmp_path / "out", IDENTITY, False) as work:
        assert work.journal["blocks"] == 2
        assert work.resumed


def test_another_job_is_refused_and_fresh_throws_away(tmp_path: Path):
    with Work(tmp_path / "out", IDENTITY, False) as work:
        work.note(blocks=2)
        (work.folder / "block-00000.part").write_text("x")
        (work.folder / RESULT).mkdir()
    other = {**IDENTITY, "recipe": {"a": 2}}
    with pytest.raises(Refused, match="unfinished work with another recipe\\n") as caught:
        Work(tmp_path / "out", other, False)
    assert "--fresh" in caught.value.hint
    with Work(tmp_path / "out", other, True) as work:
        assert work.journal["blocks"] == 0
        assert {file.name for file in work.folder.iterdir()} == {"lock", "journal.json"}


def test_a_damaged_journal_is_said(tmp_path: Path):
    with Work(tmp_path / "out", IDENTITY, False):
        pass
    (folder_of(tmp_path / "out") / "journal.json").write_text("{")
    with pytest.raises(Refused, match="is damaged") as caught:
        Work(tmp_path / "out", IDENTITY, False)
    assert "--fresh" in caught.value.hint


def test_two_runs_do_not_share_it(tmp_path: Path):
    pytest.importorskip("fcntl")
    with Work(tmp_path / "out", IDENTITY, False), pytest.raises(Refused, match="another run is writing"):
        Work(tmp_path / "out", IDENTITY, False)
    Work(tmp_path / "out", IDENTITY, False).__exit__(None, None, None)


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be written: Not a directory"):
        Work(tmp_path / "file" / "out", IDENTITY, False)


def test_the_result_moves_in_one_step(tmp_path: Path):
    with Work(tmp_path / "out", IDENTITY, False) as work:
        (work.folder / RESULT).mkdir()
        (work.folder / RESULT / "a").write_text("b")
        work.finish()
    assert (tmp_path / "out" / "a").read_text() == "b"
    assert not folder_of(tmp_path / "out").exists()


def test_a_place_that_is_taken_meanwhile_loses_nothing(tmp_path: Path):
    with Work(tmp_path / "out", IDENTITY, False) as work:
        (work.folder / RESULT).mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        with pytest.raises(Refused, match="cannot be put in its place"):
            work.finish()
        assert (work.folder / RESULT).is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do(tmp_path: Path, number: int):
    with pytest.raises(Refused, match="no room left") as caught, room(tmp_path / ".out", 3 * 10**9):
        raise OSError(number, "full")
    assert "3 GB are needed" in caught.value.hint
    assert "goes on where it stopped" in caught.value.hint


def test_threads_are_those_that_the_work_began_with(tmp_path: Path):
    before = torch.get_num_threads()
    with Work(tmp_path / "out", IDENTITY, False) as work, work.threads():
        work.note(blocks=1, threads=before + 1)
    with Work(tmp_path / "out", IDENTITY, False) as work:
        with work.threads():
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before


def test_other_errors_pass():
    with pytest.raises(PermissionError), room(Path(), 0):
        raise PermissionError(errno.EACCES, "no")


def test_hidden_states_come_back(tmp_path: Path):
    states = Hidden(tmp_path / "h", 4, 6)
    with pytest.raises(Refused, match="is damaged"):
        states.check(0)
    given = [torch.randn(4, 6) for _ in range(3)]
    sum_ = states.write(iter(given))
    states.check(sum_)
    assert all(torch.equal(a, b) for a, b in zip(states.windows(), given, strict=True))
    raw = bytearray((tmp_path / "h").read_bytes())
    raw[5] ^= 1
    (tmp_path / "h").write_bytes(raw)
    with pytest.raises(Refused, match="is damaged"):
        states.check(sum_)


def test_the_journal_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Work(tmp_path / "out", IDENTITY, False) as work:
        work.note(blocks=1)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(json, "dump", full)
        with pytest.raises(OSError, match="full"):
            work.note(blocks=2)
        monkeypatch.undo()
    with Work(tmp_path / "out", IDENTITY, False) as work:
        assert work.journal["blocks"] == 1
