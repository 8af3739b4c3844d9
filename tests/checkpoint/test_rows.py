"""Some rows are those of the whole, whatever the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from headrace.base.errors import BadCheckpoint
from headrace.checkpoint.load import open_source
from headrace.checkpoint.rows import read_rows, stored_bytes
from headrace.checkpoint.source import SafetensorsSource
from tests.checkpoint.files import LLAMA, write_gguf
from tests.checkpoint.test_quantized import checkpoint, converted, gptq


@pytest.mark.parametrize("kind", [None, "Q8_0", "Q4_1", "F16"])
def test_of_a_gguf_file(tmp_path: Path, kind: str | None):
    values = np.random.default_rng(0).standard_normal((10, 64), np.float32)
    kinds = {} if kind is None else {"token_embd.weight": kind, "blk.0.attn_q.weight": kind}
    tensors = {"token_embd.weight": values, "blk.0.attn_q.weight": np.tile(values, (7, 1))[:64]}
    source = open_source(write_gguf(tmp_path / "x.gguf", "llama", LLAMA, tensors, kinds))
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        whole = source.read(name)
        for start, stop in ((0, 3), (3, 10), (9, 10)):
            assert torch.equal(read_rows(source, name, start, stop), whole[start:stop])
    bytes_of = {None: 4 * 64, "Q8_0": 2 * 34, "Q4_1": 2 * 20, "F16": 2 * 64}[kind]
    assert stored_bytes(source, "model.embed_tokens.weight") == 10 * bytes_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_safetensors(tmp_path: Path, dtype: torch.dtype):
    whole = torch.randn(10, 6).to(dtype)
    save_file({"e": whole}, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    found = read_rows(source, "e", 2, 7)
    assert found.dtype == torch.float32
    assert torch.equal(found, whole[2:7].float())
    assert stored_bytes(source, "e") == 60 * dtype.itemsize
    assert stored_bytes(source, "nothing") == 0


def test_whole_numbers_are_no_weights(tmp_path: Path):
    save_file({"e": torch.ones(4, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="e is of type I8"):
        read_rows(open_source(tmp_path), "e", 0, 2)


def test_of_a_quantized_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored, _ = converted(lambda weight: gptq(weight, 4, 64, 1, True, False))
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    source = open_source(checkpoint(tmp_path / "m", stored, settings))
    layer = "model.layers.0.mlp.down_proj"
    assert torch.equal(read_rows(source, f"{layer}.weight", 1, 4), source.read(f"{layer}.weight")[1:4])
    sizes = {name: tensor.nbytes for name, tensor in stored.items() if name.startswith(f"{layer}.")}
    assert stored_bytes(source, f"{layer}.weight") == sum(sizes.values())
    table = "model.embed_tokens.weight"
    wanted = source.read(table)[2:5].float()
    monkeypatch.setattr(SafetensorsSource, "read", lambda *_: pytest.fail("the whole table was read"))
    assert torch.equal(read_rows(source, table, 2, 5), wanted)
    assert stored_bytes(source, table) == stored[table].nbytes
