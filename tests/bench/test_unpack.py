"""What is written for other engines holds the same model."""

from pathlib import Path

import pytest
import torch

from headrace.base.errors import Refused
from headrace.bench import unpack
from headrace.checkpoint.config import read_config
from headrace.checkpoint.load import open_source


@pytest.mark.model
def test_the_default_model_unpacked(default_model: Path, tmp_path: Path):
    folder = unpack.unpack(default_model, tmp_path / "plain")
    before, after = read_config(default_model), read_config(folder)
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "rope_theta", "tie_word_embeddings"):
        assert after[key] == before[key]
    assert '"architectures"' in (folder / "config.json").read_text()
    one, other = open_source(default_model), open_source(folder)
    assert set(other.names()) == set(one.names()) - {"lm_head.weight"}
    name = "model.layers.3.self_attn.q_proj.weight"
    assert torch.equal(one.read(name).bfloat16(), other.read(name))


def test_a_type_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpack, "read_config", lambda path: {"model_type": "zebra"})
    with pytest.raises(Refused, match="zebra"):
        unpack.unpack(tmp_path / "x.gguf", tmp_path / "y")
