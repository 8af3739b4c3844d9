"""Where a config.json is found, and what is said when there is none."""

import json
from pathlib import Path

import pytest

from headrace.base.errors import BadCheckpoint, UnknownName, Unreachable
from headrace.checkpoint import huggingface
from headrace.plan import find
from headrace.plan.known import KNOWN

CONFIG = KNOWN["qwen3-0.6b"]


def test_a_known_shape_a_folder_and_a_file(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    for said in ("qwen3-0.6b", "Qwen3-0.6B", str(tmp_path), str(file)):
        assert find.settings(said) == CONFIG


def test_the_hub_gives_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[huggingface.Reference] = []

    def fetch(reference: huggingface.Reference) -> Path:
        asked.append(reference)
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        return tmp_path / "config.json"

    monkeypatch.setattr(find, "fetch_config", fetch)
    assert find.settings("org/model@v2") == CONFIG
    assert asked == [huggingface.Reference("org/model", "v2")]


def test_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface.huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(Unreachable, match="no network"):
        find.settings("nobody/nothing-of-that-name")


@pytest.mark.parametrize("said", ["lama-3.1-8b", "", "a b c", "./none/config.json", "none.json"])
def test_what_is_not_there(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName) as fault:
        find.settings(said)
    assert fault.value.hint
    if said == "lama-3.1-8b":
        assert "did you mean 'llama-3.1-8b'" in fault.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"x"', "[" * 100_000])
def test_what_is_no_configuration(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadCheckpoint):
        find.settings(str(tmp_path))


def test_a_folder_without_one(tmp_path: Path):
    with pytest.raises(UnknownName, match=r"config\.json"):
        find.settings(str(tmp_path))
