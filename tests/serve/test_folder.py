"""What a killed server leaves behind is removed by the next one; what is anybody else's stays."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headrace.serve.folder import LOCK, PREFIX, Folder, sweep

OWNER = (
    "import time; from headrace.serve.folder import Folder; print(Folder().path, flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_it_is_private_and_goes_when_it_is_told_to():
    folder = Folder()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_a_killed_owner_s_folder_goes_with_the_next_start_and_a_living_one_s_stays():
    words = [sys.executable, "-c", OWNER]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert owner.stdout is not None
    left = Path(owner.stdout.readline().decode().strip())
    (left / "front-0.sock").touch()
    living = Folder()
    assert left.exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    third = Folder()
    assert not left.exists()
    assert living.path.exists()
    third.remove()
    living.remove()


def test_what_is_not_a_server_s_stays(root: Path):
    (root / f"{PREFIX}notes").mkdir()
    (root / f"{PREFIX}file").touch()
    true = root / "elsewhere"
    true.mkdir()
    (true / LOCK).touch()
    (root / f"{PREFIX}link").symlink_to(true)
    sweep()
    assert (root / f"{PREFIX}notes").exists()
    assert (root / f"{PREFIX}file").exists()
    assert (true / LOCK).exists()


def test_another_user_s_stays(root: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = root / f"{PREFIX}theirs"
    theirs.mkdir()
    (theirs / LOCK).touch()
    monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
    sweep()
    assert theirs.exists()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    sweep()
    assert not theirs.exists()
