"""What is written for other engines holds the same model."""

from pathlib import Path

import pytest
import torch

from headrace.base.errors import Refused
from headrace.bench import unpack
from headrace.checkpoint.config import read_config
from headrace.checkpoint.export_gguf import export_gguf
from headrace.checkpoint.load import open_source
from tests import tiny


def test_a_model_unpacked(tmp_path: Path):
    file, sizes = tmp_path / "m.gguf", {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    export_gguf(tiny.folder(tmp_path / "m", **sizes), file, "q4_0")
    folder = unpack.unpack(file, tmp_path / "plain")
    before, after = read_config(file), read_config(folder)
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "rope_theta", "tie_word_embeddings"):
        assert after[key] == before[key]
    assert '"architectures"' in (folder / "config.json").read_text()
    one, other = open_source(file), open_source(folder)
    assert set(other.names()) == set(one.names())
    for name in one.names():
        assert torch.equal(one.read(name).bfloat16(), other.read(name))


def test_a_type_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpack, "read_config", lambda path: {"model_type": "zebra"})
    with pytest.raises(Refused, match="zebra"):
        unpack.unpack(tmp_path / "x.gguf", tmp_path / "y")
