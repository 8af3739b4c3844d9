"""What a model's makers recommend survives the way into a GGUF file and out of it."""

import json
from pathlib import Path

import gguf
import pytest

from headrace.base.errors import BadCheckpoint
from headrace.checkpoint.export_gguf import export_gguf
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.sampling import KEYS, PREFIX, as_keys, recommended
from headrace.checkpoint.write_gguf import write_gguf
from headrace.models.llama import TINY
from tests import tiny

ALL = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}
KNOWN = "smollm2-135m"


def saying(folder: Path, **said: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


def written(path: Path, **said: object) -> Gguf:
    write_gguf(path, {PREFIX + key: value for key, value in said.items()}, [])
    return Gguf(path)


def test_keys_are_those_of_the_format():
    general = gguf.Keys.General
    names = {
        "temperature": general.SAMPLING_TEMP,
        "top_p": general.SAMPLING_TOP_P,
        "top_k": general.SAMPLING_TOP_K,
        "min_p": general.SAMPLING_MIN_P,
        "repetition_penalty": general.SAMPLING_PENALTY_REPEAT,
    }
    assert as_keys(ALL) == {names[name]: value for name, value in ALL.items()}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (ALL, ALL),
        ({"temperature": 1, "do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, **ALL}, {**ALL, "temperature": 0.0}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"eos_token_id": 2}, {}),
    ],
)
def test_a_file_says_what_its_source_said(tmp_path: Path, said: dict[str, object], kept: dict[str, float]):
    folder = saying(tiny.folder(tmp_path / "m", TINY), **said)
    export_gguf(folder, tmp_path / "x.gguf")
    export_gguf(tmp_path / "x.gguf", tmp_path / "y.gguf")
    for source in (folder, Gguf(tmp_path / "x.gguf"), Gguf(tmp_path / "y.gguf")):
        found = recommended(source)
        assert found == kept
        assert isinstance(found.get("top_k", 0), int)
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    for name, value in kept.items():
        field = fields[PREFIX + KEYS[name]]
        assert field.contents() == pytest.approx(value, rel=1e-6)
        assert (field.types[0] == gguf.GGUFValueType.FLOAT32) == (name != "top_k")
    assert sum(key.startswith(PREFIX) for key in fields) == len(kept)


def test_files_come_before_names(tmp_path: Path):
    known = recommended(tmp_path, KNOWN)
    assert known["temperature"] == 0.2
    assert recommended(written(tmp_path / "silent.gguf"), KNOWN) == known
    assert recommended(written(tmp_path / "says.gguf", top_k=9), KNOWN) == {"top_k": 9}
    assert recommended(saying(tmp_path, top_k=9), KNOWN) == {"top_k": 9}
    assert recommended(tmp_path / "model.safetensors", "unknown") == {}


def test_a_known_name_goes_into_the_file(tmp_path: Path):
    export_gguf(tiny.folder(tmp_path / "m", TINY), tmp_path / "x.gguf", name=KNOWN)
    assert recommended(Gguf(tmp_path / "x.gguf")) == recommended(tmp_path, KNOWN)


def test_what_is_no_number_is_left_out(tmp_path: Path):
    odd = {"temp": "hot", "top_p": [0.5], "top_k": float("nan"), "min_p": True, "penalty_repeat": 1e30}
    assert recommended(written(tmp_path / "odd.gguf", **odd)) == {}
    assert recommended(written(tmp_path / "float.gguf", top_k=64.0)) == {"top_k": 64}
    assert recommended(saying(tmp_path, temperature="hot", top_p=None, top_k=10**400)) == {}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(BadCheckpoint):
        recommended(tmp_path)
