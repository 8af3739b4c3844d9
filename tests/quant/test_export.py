"""What we write is what compressed-tensors reads, and the other way round."""

import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from headrace.nn.decoder import Decoder
from headrace.nn.packed import PackedRows
from headrace.quant.export import config as compressed
from headrace.quant.scheme import Packed, Scheme, part
from headrace.quant.schemes import known
from tests.checkpoint.test_quantized import logits, written

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme

# How far the outputs of a layer (up to 6) and logits (up to 3) may be apart. Rounded inputs are: by 127.5 there in
# 8-bit integers; and a bit of noise becomes a step of 1/16 in 8-bit floats. 4-bit floats are unpacked to bf16.
SAME = (1e-5, 1e-4)
NAMES = {
    "w4a16": SAME, "w4a16_g64": SAME, "w4a16_row": SAME, "w8a16": SAME, "w8a16_g32": SAME, "w8a8": (0.1, 0.3),
    "fp8": (1e-4, 0.5), "fp8_a16": SAME, "fp8_block": (1e-4, 0.5), "nvfp4": (0.1, 0.1), "mxfp4": (0.1, 0.1),
}  # fmt: skip


def projections(model: Decoder) -> Iterator[tuple[str, Scheme, Packed]]:
    """(name in a checkpoint, scheme, tensors) of all that is quantized."""
    for names, layer in model.linears():
        if isinstance(layer.packed, PackedRows):
            ends = list(accumulate(layer.outputs))
            for name, rows, end in zip(names, layer.outputs, ends, strict=True):
                yield name, *rows_of(layer.packed, end - rows, end)


def rows_of(packed: PackedRows, start: int, stop: int) -> tuple[Scheme, Packed]:
    """As they are packed."""
    for each in packed.weights:
        if start < each.rows:
            return each.scheme, part(each.scheme, each.tensors, start, stop, "out")
        start, stop = start - each.rows, stop - each.rows
    raise IndexError(start)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same(tmp_path: Path, name: str):
    at, ours = written(tmp_path, name)
    dtype = torch.bfloat16 if "fp4" in name else torch.float32
    theirs = AutoModelForCausalLM.from_pretrained(at, dtype=dtype).eval()
    with torch.no_grad():
        expected = theirs(torch.arange(12)[None]).logits[0].float()
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=NAMES[name][1])
    modules = dict(theirs.named_modules())
    for layer, scheme, packed in projections(ours):
        weight = modules[layer].weight.detach()
        torch.testing.assert_close(scheme.unpack(packed, weight.dtype), weight, rtol=0, atol=0)
        x = torch.randn(1, 3, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(weight.dtype)
        with torch.no_grad():
            torch.testing.assert_close(
                scheme.apply(packed, x), modules[layer](x), rtol=0, atol=NAMES[name][0]
            )


@pytest.mark.parametrize("name", ["w4a16_g32_asym", "w8a16_g64_asym", "w4a16_row_asym"])
def test_zero_points_are_read(tmp_path: Path, name: str):
    """By the library itself: transformers 5.23 expects them unpacked, and loads none."""
    at, ours = written(tmp_path, name)
    config = json.loads((at / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    tensors = load_file(at / "model.safetensors")
    for layer, ours_scheme, packed in projections(ours):
        own = {k.rpartition(".")[2]: t for k, t in tensors.items() if k.startswith(f"{layer}.")}
        theirs = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
        torch.testing.assert_close(ours_scheme.unpack(packed, theirs.dtype), theirs, rtol=1e-2, atol=1e-3)


def test_a_quantized_head_is_named():
    """In vLLM it is no Linear."""
    scheme, other = known()["w4a16"], known()["w8a8"]
    layers = {"model.layers.0.mlp.up_proj": scheme, "model.layers.0.mlp.down_proj": scheme}
    groups = compressed(layers | {"lm_head": scheme}, [])["config_groups"]
    assert groups["group_0"]["targets"] == ["Linear", "lm_head"]
    assert compressed(layers, ["lm_head"])["config_groups"]["group_0"]["targets"] == ["Linear"]
    groups = compressed(layers | {"lm_head": other}, [])["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["Linear"], ["lm_head"]]
