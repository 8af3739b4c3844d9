"""GGUF tensors come out as the Hugging Face checkpoint had them; folders that are not whole are refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from headrace.base.errors import BadCheckpoint, Refused, UnknownName
from headrace.checkpoint.config import read_config
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.load import load, open_source
from headrace.checkpoint.translate import FAMILIES, hf_name
from headrace.models import build
from headrace.nn.decoder import Decoder
from tests.checkpoint.files import LLAMA, TINY, keys, model, write_gguf


def converted(config: dict[str, Any], arch: str, built: Decoder) -> dict[str, np.ndarray]:
    """Weights as llama.cpp's converter writes them: rows of q and k interleaved, gemma's norms plus one."""
    family, out = FAMILIES[arch], {}
    ours = dict(built.sources())
    blocks = range(config["num_hidden_layers"])
    names = ["token_embd.weight", "output_norm.weight", "output.weight"]
    parts = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "attn_q_norm",
        "attn_k_norm",
        "ffn_norm",
    ]
    parts += ["ffn_gate", "ffn_up", "ffn_down", "post_attention_norm", "post_ffw_norm"]
    names += [f"blk.{i}.{part}.{what}" for i in blocks for part in parts for what in ("weight", "bias")]
    for name in names:
        if (hf := hf_name(name, family)) not in ours:
            continue
        array = ours[hf].numpy().copy()
        if family.permuted and ("attn_q." in name or "attn_k." in name):
            heads = config["num_attention_heads" if "attn_q" in name else "num_key_value_heads"]
            array = (
                array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
            )
        if family.shifted_norms and name.endswith("norm.weight"):
            array = array + 1
        out[name] = array
    assert len(out) == len(ours)
    return out


CASES = {
    "llama": ({}, {}),
    "llama-bias": ({"attention_bias": True}, {}),
    "qwen2": ({"model_type": "qwen2"}, {}),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32}, {"attention__key_length": 32}),
    "gemma2": ({"model_type": "gemma2", "sliding_window": 8}, {"attention__sliding_window": 8}),
    "gemma3": ({"model_type": "gemma3_text", "sliding_window": 8}, {"attention__sliding_window": 8}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_has_the_weights_it_had(tmp_path: Path, case: str):
    arch, (difference, more) = case.partition("-")[0], CASES[case]
    config = TINY | difference
    one = model(config)
    path = write_gguf(tmp_path / "x.gguf", arch, keys(arch, **more), converted(config, arch, one))
    other = build(read_config(path), 64)
    load(other, open_source(path))
    theirs = dict(one.named_parameters())
    for name, tensor in other.named_parameters():
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=2.5e-7), name
    assert {name for name, _ in other.named_parameters()} == set(theirs)


def test_rows_are_reordered_while_still_packed(tmp_path: Path):
    built = model(TINY)
    tensors = converted(TINY, "llama", built)
    name, code = "blk.1.attn_q.weight", gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "x.gguf", "llama", LLAMA, tensors, {name: "Q8_0"})
    mine = open_source(path).read("model.layers.1.self_attn.q_proj.weight")
    original = dict(built.sources())["model.layers.1.self_attn.q_proj.weight"]
    expected = gguf.dequantize(gguf.quantize(original.numpy(), code), code)
    assert np.array_equal(mine.numpy(), expected)


def test_rope_factors_are_no_weight(tmp_path: Path):
    tensors = {"rope_freqs.weight": np.ones(8, np.float32), "output_norm.weight": np.ones(64, np.float32)}
    source = open_source(write_gguf(tmp_path / "x.gguf", "llama", LLAMA, tensors))
    assert source.names() == {"model.norm.weight"}
    assert source.shape("model.norm.weight") == (64,)
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight has shape \[64\]; .* \[63\]"):
        source.read("model.norm.weight", torch.empty(63))


def test_rows_that_are_no_heads(tmp_path: Path):
    source = open_source(
        write_gguf(tmp_path / "x.gguf", "llama", LLAMA, {"blk.0.attn_k.weight": np.ones((6, 64), np.float32)})
    )
    with pytest.raises(BadCheckpoint, match=r"6 rows of blk\.0\.attn_k\.weight cannot be 2 heads"):
        source.read("model.layers.0.self_attn.k_proj.weight")


def test_safetensors_by_name(tiny: Path):
    source, there = open_source(tiny), dict(model(TINY).sources())
    assert source.names() == set(there)
    assert source.shape("model.norm.weight") == (64,)
    assert torch.equal(source.read("model.norm.weight"), there["model.norm.weight"])
    with pytest.raises(BadCheckpoint, match=r"shape \[64\]"):
        source.read("model.norm.weight", torch.empty(3))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"},
            r"lacks 2 of the 3 files its index names: b\.safetensors, c\.safetensors",
        ),
        ({"x": "a.safetensors"}, "lacks tensors that the index says it has: x"),
        *(
            ({"x": file}, "a file beside it was expected")
            for file in ("../a.safetensors", "/etc/passwd", 3, "")
        ),
        *((table, "has no weight_map") for table in (None, {}, [1])),
    ],
)
def test_an_index_that_is_wrong(tiny: Path, table: Any, message: str):
    (tiny / "model.safetensors").rename(tiny / "a.safetensors")
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(BadCheckpoint, match=message):
        open_source(tiny)


def test_folders_without_weights_we_read(tmp_path: Path):
    with pytest.raises(UnknownName, match="no folder"):
        open_source(tmp_path / "none")
    with pytest.raises(UnknownName, match="no file"):
        open_source(tmp_path / "none.safetensors")
    with pytest.raises(UnknownName, match="has no weights"):
        open_source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04never opened")
    with pytest.raises(Refused, match=r"only pytorch_model\.bin"):
        open_source(tmp_path)
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(BadCheckpoint, match="2 safetensors files and no model"):
        open_source(tmp_path)


def test_flipped_bytes_are_refused_or_loaded(tmp_path: Path):
    """From the file to the weights, with bytes before the data changed: never anything but Refused."""
    path = write_gguf(tmp_path / "x.gguf", "llama", LLAMA, converted(TINY, "llama", model(TINY)))
    data, rng = path.read_bytes(), np.random.default_rng(0)
    header = min(entry.offset for entry in Gguf(path).tensors.values())
    outcomes = {"refused": 0, "loaded": 0}
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.integers(24, header)] ^= 1 << rng.integers(0, 8)
        path.write_bytes(broken)
        try:
            with torch.device("meta"):
                built = build(read_config(path), 8)
            built.allocate(torch.float32, torch.device("cpu"))
            load(built, open_source(path))
            outcomes["loaded"] += 1
        except Refused:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0
