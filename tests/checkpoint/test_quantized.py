"""Quantized checkpoints load packed, and what they load computes what their unpacked weights do."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrace import models
from headrace.base.errors import BadCheckpoint, Refused
from headrace.checkpoint.config import read_config
from headrace.checkpoint.load import dummy, load, open_source
from headrace.checkpoint.quantized import RandomSource, RoundedSource, load_packed, multiplied_packed
from headrace.checkpoint.source import Source
from headrace.nn.decoder import Decoder
from headrace.nn.packed import PackedRows
from headrace.optimize.run import run
from headrace.quant.bits import pack_bits
from headrace.quant.formats.awq import PLACES
from headrace.quant.schemes import known
from tests import tiny
from tests.checkpoint.files import LLAMA, write_gguf
from tests.checkpoint.files import TINY as GGUF
from tests.checkpoint.files import model as model_of
from tests.checkpoint.test_source import converted as converted_gguf
from tests.optimize import small

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 40, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False,
    "max_position_embeddings": 64, "sliding_window": None, "layer_types": ["full_attention"],
    "attention_bias": False, "mlp_bias": False, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
Tensors = dict[str, Tensor]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(config: Mapping[str, Any] = CONFIG) -> Decoder:
    with torch.device("meta"):
        return models.build(dict(config), 64)


def weights() -> Tensors:
    """Of every tensor; columns of unequal size, so that an order of columns shows."""
    made: Tensors = {}
    for seed, (name, target) in enumerate(built().sources()):
        made[name] = random(*target.shape, seed=seed) / target.shape[-1] ** 0.5
        if name.endswith("norm.weight"):
            made[name] = made[name] + 1
        elif ".layers." in name:
            made[name] *= torch.linspace(0.2, 2, target.shape[1])
    return {name: tensor.bfloat16() for name, tensor in made.items()}


def loaded(source: Source, packed: bool, config: Mapping[str, Any] = CONFIG) -> Decoder:
    model = built(config)
    if packed:
        load_packed(model, source, torch.float32, "cpu")
    model.allocate(torch.float32, "cpu")
    load(model, source)
    return model.eval()


def unpacked(packed: PackedRows) -> Tensor:
    return torch.cat([part.scheme.unpack(part.tensors) for part in packed.weights])


def logits(model: Decoder) -> Tensor:
    return tiny.logits(model, range(12))


def checkpoint(at: Path, tensors: Tensors, quantization: Mapping[str, Any] | None) -> Path:
    at.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, at / "model.safetensors")
    config = CONFIG if quantization is None else {**CONFIG, "quantization_config": quantization}
    (at / "config.json").write_text(json.dumps(config))
    return at


def converted(convert: Callable[[Tensor], tuple[Tensors, Tensor]]) -> tuple[Tensors, Tensors]:
    """The checkpoint's tensors, and all weights as they must come out."""
    stored, plain = {}, {}
    for name, weight in weights().items():
        plain[name] = weight.float()
        if ".layers." not in name or name.endswith("norm.weight"):
            stored[name] = weight
            continue
        made, plain[name] = convert(weight.float())
        stored |= {f"{name.removesuffix('.weight')}.{suffix}": tensor for suffix, tensor in made.items()}
    return stored, plain


def assert_reads(at: Path, plain: Tensors, scheme: str | None = None) -> Decoder:
    source = open_source(at)
    assert source.names() == set(plain)
    for name, weight in plain.items():
        torch.testing.assert_close(source.read(name).float(), weight, rtol=1e-6, atol=1e-7)
    model = loaded(source, packed=True)
    names = set()
    for _, layer in list(model.linears())[:-1]:
        assert isinstance(layer.packed, PackedRows)
        assert layer.weight.numel() == 0
        names |= {part.scheme.name for part in layer.packed.parts}
    assert scheme is None or names == {scheme}
    if all(
        part.scheme.spec.activation is None
        for _, layer in model.linears()
        if layer.packed
        for part in layer.packed.parts
    ):
        torch.testing.assert_close(logits(model), logits(loaded(source, packed=False)), rtol=1e-4, atol=1e-4)
    return model


# -- what others write ----------------------------------------------------------------------------------------


def gptq(weight: Tensor, bits: int, group: int, version: int, symmetric: bool, act_order: bool):
    columns = weight.shape[1]
    order = (
        torch.randperm(columns, generator=torch.Generator().manual_seed(1))
        if act_order
        else torch.arange(columns)
    )
    g_idx = torch.empty(columns, dtype=torch.int32)
    g_idx[order] = (torch.arange(columns) // group).int()
    grouped = weight[:, order].unflatten(1, (-1, group))
    top = 2**bits - 1
    low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    if symmetric:
        scale = (torch.maximum(-low, high) * 2 / top).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = ((high - low) / top).half().float()
        zero = (-low / scale).round().clamp(0, top)
    scale_NK, zero_NK = scale[:, g_idx.long()], zero[:, g_idx.long()]
    values = (weight / scale_NK + zero_NK).round().clamp(0, top)
    stored = {
        "qweight": pack_bits(values.int(), bits).T,
        "qzeros": pack_bits((zero.int().T - int(version == 1)) & top, bits),
        "scales": scale.T.half(),
        "g_idx": g_idx,
    }
    return stored, (values - zero_NK) * scale_NK


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "version", "group"), [(4, 1, 64), (4, 2, 128), (8, 1, 32), (3, 2, 256)])
def test_gptq(tmp_path: Path, bits: int, version: int, group: int, symmetric: bool, act_order: bool):
    stored, plain = converted(lambda w: gptq(w, bits, group, version, symmetric, act_order))
    said = {
        "quant_method": "gptq", "bits": bits, "group_size": group if group < 256 else -1, "sym": symmetric,
        "desc_act": act_order, "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }  # fmt: skip
    size = "" if (group == 128 and bits == 4) or group == 256 else f"_g{group}"
    name = f"w{4 if bits == 4 else 8}a16{size}{'' if symmetric else '_asym'}"
    model = assert_reads(checkpoint(tmp_path / "m", stored, said), plain, name)
    qkv = model.blocks[0].self_attn.qkv_proj.packed
    assert len(qkv.parts) == 1, "joined"
    assert ("order" in qkv.parts[0].tensors) == (act_order and group < 256)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_zero_points_of_zero_borrow_within_a_word(tmp_path: Path, bits: int):
    """GPTQModel takes one from each value of version 2 by one subtraction of words."""

    def convert(weight: Tensor) -> tuple[Tensors, Tensor]:
        weight = weight.clone()
        weight[::3] = weight[::3].abs()
        stored, plain = gptq(weight, bits, 64, 2, False, False)
        ones = sum(1 << place for place in range(0, 32, bits))
        return {**stored, "qzeros": stored["qzeros"] - ones}, plain

    stored, plain = converted(convert)
    said = {"quant_method": "gptq", "bits": bits, "group_size": 64, "sym": False}
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain)


def test_gptq_layers_may_differ(tmp_path: Path):
    stored, plain = converted(lambda w: gptq(w, 4, 64, 1, True, False))
    made, plain["model.layers.0.mlp.down_proj.weight"] = gptq(
        weights()["model.layers.0.mlp.down_proj.weight"].float(), 8, 32, 1, True, False
    )
    stored |= {f"model.layers.0.mlp.down_proj.{suffix}": tensor for suffix, tensor in made.items()}
    said = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gptq"}
    said["dynamic"] = {r"+:.*down_proj": {"bits": 8, "group_size": 32}, r"-:.*nothing": {}}
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain)


def awq(weight: Tensor, group: int):
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    values = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    places = torch.tensor(PLACES).argsort()

    def words(x_AN: Tensor) -> Tensor:
        return pack_bits(x_AN.int().unflatten(1, (-1, 8))[..., places].flatten(1), 4)

    stored = {"qweight": words(values.flatten(1).T), "qzeros": words(zero.T), "scales": scale.T.half()}
    return stored, ((values - zero[..., None]) * scale[..., None]).flatten(1)


def test_awq(tmp_path: Path):
    stored, plain = converted(lambda w: awq(w, 64))
    said = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain, "w4a16_g64_asym")


def test_awq_by_its_golden_vector():
    from headrace.quant.formats.awq import nibbles

    assert (nibbles(torch.tensor([[0x75316420]], dtype=torch.int32)) + 8).tolist() == [list(range(8))]


def fp8_blocks(weight: Tensor):
    blocks = weight.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    scale = blocks.abs().amax((1, 3)) / 448
    values = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    plain = (values.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
    return {"weight": values.flatten(2).flatten(0, 1), "weight_scale_inv": scale}, plain


def test_fp8_of_deepseek(tmp_path: Path):
    stored, plain = converted(fp8_blocks)
    said = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain, "fp8_block")


def test_fp8_with_one_scale_for_all(tmp_path: Path):
    def convert(weight: Tensor):
        scale = weight.abs().amax() / 448
        values = (weight / scale).to(torch.float8_e4m3fn)
        inputs = torch.tensor([0.02])
        return {"weight": values, "weight_scale": scale, "input_scale": inputs}, values.float() * scale

    stored, plain = converted(convert)
    said = {"quant_method": "fp8", "activation_scheme": "static"}
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain, "fp8_static")
    del stored["model.layers.0.mlp.up_proj.input_scale"]
    with pytest.raises(BadCheckpoint, match="up_proj lacks input_scale"):
        open_source(checkpoint(tmp_path / "broken", stored, said))


# -- what we write ----------------------------------------------------------------------------------------------


WRITABLE = [
    name
    for name, scheme in known().items()
    if "." not in name and not name.startswith("q") and not scheme.spec.static
]


def written(at: Path, name: str) -> tuple[Path, Decoder]:
    """A folder whose layers were rounded plainly, and the model with layers rounded while they are read."""
    base = checkpoint(at / "base", weights(), None)
    plain = small.recipe(None, scheme=name, passes=[{"rtn": {"steps": 1}}], dtype="auto")
    run(str(base), str(at / "m"), plain)
    source = RoundedSource(open_source(base), known()[name], torch.bfloat16, "cpu")
    return at / "m", loaded(source, packed=True)


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_reads_back_the_same(tmp_path: Path, name: str):
    at, model = written(tmp_path, name)
    again = loaded(open_source(at), packed=True)
    for (_, one), (_, other) in zip(model.linears(), again.linears(), strict=True):
        assert (one.packed is None) == (other.packed is None)
        if isinstance(one.packed, PackedRows) and isinstance(other.packed, PackedRows):
            assert [part.scheme for part in one.packed.parts] == [part.scheme for part in other.packed.parts]
            assert torch.equal(unpacked(one.packed), unpacked(other.packed))
    assert torch.equal(logits(model), logits(again))


def test_unpacked_is_written_in_bf16(tmp_path: Path):
    at, model = written(tmp_path, "w4a16_g64")
    run(str(at), str(tmp_path / "plain"), small.recipe(None, scheme="none", dtype="auto"))
    again = loaded(open_source(tmp_path / "plain"), packed=True)
    assert all(layer.packed is None for _, layer in again.linears())
    torch.testing.assert_close(logits(again), logits(model), rtol=0.05, atol=0.05)


def test_a_projection_left_out_is_joined_as_it_is(tmp_path: Path):
    stored, plain = converted(lambda w: gptq(w, 4, 64, 2, True, False))
    name = "model.layers.0.self_attn.k_proj.weight"
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        del stored[name.replace("weight", suffix)]
    stored[name] = weights()[name]
    plain[name] = stored[name].float()
    said = {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"}
    model = assert_reads(checkpoint(tmp_path / "m", stored, said), plain)
    assert [p.scheme.name for p in model.blocks[0].self_attn.qkv_proj.packed.parts] == [
        "w4a16_g64",
        "none",
        "w4a16_g64",
    ]


# -- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "suffix"), [("gptq", "scales"), ("gptq", "g_idx"), ("awq", "qzeros")])
def test_a_missing_tensor_is_named(tmp_path: Path, method: str, suffix: str):
    stored, _ = converted(lambda w: gptq(w, 4, 64, 1, True, True) if method == "gptq" else awq(w, 64))
    del stored[f"model.layers.0.self_attn.v_proj.{suffix}"]
    said = {"quant_method": method, "bits": 4, "group_size": 64, "desc_act": True}
    with pytest.raises(BadCheckpoint, match=rf"layers\.0\.self_attn\.v_proj lacks {suffix}"):
        loaded(open_source(checkpoint(tmp_path / "m", stored, said)), packed=True)


@pytest.mark.parametrize(
    ("name", "suffix", "change", "message"),
    [
        ("w4a16_g64_asym", "weight_zero_point", Tensor.char, r"int8 \[32, 4\]; int8 \[256, 4\] or \[1\] was"),
        ("sparse24", "bitmask", lambda mask: mask | 7, "does not keep two of every four columns"),
        ("sparse24_fp8", "bitmask", lambda mask: mask & 0xF1, "does not keep two of every four columns"),
    ],
)
def test_tensors_that_make_no_sense_are_named(
    tmp_path: Path, name: str, suffix: str, change: Callable[[Tensor], Tensor], message: str
):
    at, _ = written(tmp_path, name)
    stored = load_file(at / "model.safetensors")
    broken = f"model.layers.0.mlp.down_proj.{suffix}"
    save_file({**stored, broken: change(stored[broken])}, at / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=message):
        loaded(open_source(at), packed=True)


def test_a_tensor_too_many_is_named(tmp_path: Path):
    stored, _ = converted(lambda w: awq(w, 64))
    stored["model.layers.0.mlp.down_proj.twist"] = torch.ones(2)
    said = {"quant_method": "awq", "bits": 4, "group_size": 64}
    with pytest.raises(BadCheckpoint, match=r"down_proj\.twist"):
        loaded(open_source(checkpoint(tmp_path / "m", stored, said)), packed=True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "gptq", "bits": 5, "group_size": 64}, r"GPTQ with 5 bits is not supported"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 96},
            r"256 columns in groups of 96 is not supported",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            "format 'marlin' is not supported",
        ),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version 'gemv' is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"blocks of \[64, 64\] are not supported"),
        ({"quant_method": "fp8", "weight_block_size": 5}, "blocks of 5 are not supported"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes', which is not supported"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path: Path, said: dict[str, Any], message: str):
    stored, _ = converted(lambda w: gptq(w, 4, 64, 1, True, False))
    with pytest.raises(Refused, match=message):
        open_source(checkpoint(tmp_path / "m", stored, said))


def test_a_weight_that_does_not_fit_is_named(tmp_path: Path):
    base = checkpoint(tmp_path / "base", {"model.layers.0.mlp.up_proj.weight": torch.ones(8, 576)}, None)
    source = RoundedSource(open_source(base), known()["w4a16"], torch.bfloat16, "cpu")
    with pytest.raises(
        Refused, match=r"up_proj: groups of 128 do not divide 576 columns; groups of 64 would"
    ):
        source.packed("model.layers.0.mlp.up_proj.weight")


# -- compressed-tensors by hand ------------------------------------------------------------------------------------


def compressed(*groups: dict[str, Any]) -> dict[str, Any]:
    named = {f"group_{n}": {"targets": ["Linear"], **group} for n, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": named}


def rows8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and scales of int8 rows."""
    scale = (weight.abs().amax(1, keepdim=True) / 127.5).bfloat16()
    return (weight / scale.float()).round().clamp(-128, 127).to(torch.int8), scale


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


@pytest.mark.parametrize(
    ("inputs", "scheme"),
    [
        ({"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}, "w8a8"),
        ({"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": False}, "int8"),
        ({"num_bits": 8, "type": "int", "dynamic": False, "strategy": "tensor"}, "w8a8_static"),
        ({"num_bits": 8, "type": "int", "dynamic": False, "strategy": "tensor", "symmetric": False}, "w8a16"),
        ({"num_bits": 4, "type": "int", "dynamic": True, "strategy": "token"}, "w8a16"),
        (None, "w8a16"),
    ],
)
def test_int8_by_what_is_said_of_inputs(tmp_path: Path, inputs: dict[str, Any] | None, scheme: str):
    def convert(weight: Tensor) -> tuple[Tensors, Tensor]:
        values, scale = rows8(weight)
        stored = {"weight": values, "weight_scale": scale}
        static = inputs is not None and not inputs["dynamic"]
        stored |= {"input_scale": torch.tensor([0.02])} if static else {}
        if static and not inputs.get("symmetric", True):
            stored["input_zero_point"] = torch.tensor([3], dtype=torch.int8)
        return stored, values.float() * scale.float()

    stored, plain = converted(convert)
    said = compressed({"weights": INT8, "input_activations": inputs})
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain, scheme)


@pytest.mark.parametrize("old", [False, True])
def test_three_bits_and_an_order_of_columns(tmp_path: Path, old: bool):
    order = torch.randperm(256, generator=torch.Generator().manual_seed(5))
    g_idx = torch.empty(256, dtype=torch.int32)
    g_idx[order] = (torch.arange(256) // 64).int()

    def convert(weight: Tensor) -> tuple[Tensors, Tensor]:
        scale = (weight[:, order].unflatten(1, (-1, 64)).abs().amax(2) / 3.5).bfloat16()
        values = (weight / scale.float()[:, g_idx.long()]).round().clamp(-4, 3)
        unsigned = values.int() + 4
        if old:  # ten to a word
            padded = torch.nn.functional.pad(unsigned, (0, 4)).unflatten(1, (-1, 10))
            words = (padded << torch.arange(0, 30, 3, dtype=torch.int32)).sum(2).int()
        else:
            words = pack_bits(unsigned, 3)
        stored = {"weight_packed": words, "weight_scale": scale, "weight_g_idx": g_idx.clone()}
        stored["weight_shape"] = torch.tensor(weight.shape)
        return stored, values * scale.float()[:, g_idx.long()]

    stored, plain = converted(convert)
    group = {"num_bits": 3, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    said = compressed({"weights": {**group, "actorder": "group"}, "input_activations": None})
    assert_reads(checkpoint(tmp_path / "m", stored, said), plain, "w8a16_g64")


def test_groups_are_found_by_name_then_pattern_then_class(tmp_path: Path):
    def eight(weight: Tensor) -> tuple[Tensors, Tensor]:
        values, scale = rows8(weight)
        return {"weight": values, "weight_scale": scale}, values.float() * scale.float()

    stored, plain = converted(eight)
    inputs = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
    said = compressed(
        {"weights": INT8, "input_activations": inputs},
        {"weights": INT8, "input_activations": None, "targets": ["re:.*mlp.*"]},
        {"weights": INT8, "input_activations": inputs, "targets": ["model.layers.0.mlp.down_proj"]},
    )
    model = assert_reads(checkpoint(tmp_path / "m", stored, said), plain)
    mlp = model.blocks[0].mlp
    assert mlp.gate_up_proj.packed.parts[0].scheme.name == "w8a16"
    assert mlp.down_proj.packed.parts[0].scheme.name == "w8a8"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            compressed({"weights": {"num_bits": 9, "type": "int"}}),
            "q_proj: 'int' weights of 9 bits is not supported",
        ),
        (
            compressed({"weights": INT8, "targets": ["re:nothing"]}),
            r"says nothing of .*, which is stored quantized",
        ),
        (compressed() | {"format": "marlin-24"}, "the format 'marlin-24' is not supported"),
        (compressed() | {"transform_config": {"config_groups": {"R1": {}}}}, "transforms of activations"),
        (compressed() | {"config_groups": [5]}, r"config_groups is \[5\]; an object was expected"),
        (compressed() | {"sparsity_config": "x"}, "sparsity_config is 'x'; an object was expected"),
        (compressed({"weights": 5}), "weights is 5; an object was expected"),
        (compressed({"weights": INT8, "input_activations": True}), "input_activations is True"),
        (compressed({"weights": INT8, "targets": [1]}), r"targets is \[1\]; a list of names"),
        (compressed({"weights": INT8, "targets": ["re:("]}), r"targets has 're:\('"),
    ],
)
def test_what_compressed_tensors_has_and_we_do_not_is_said(
    tmp_path: Path, said: dict[str, Any], message: str
):
    stored, name = weights(), "model.layers.0.self_attn.q_proj"
    values, scale = rows8(stored[f"{name}.weight"].float())
    stored |= {f"{name}.weight": values, f"{name}.weight_scale": scale}
    with pytest.raises(Refused, match=message):
        open_source(checkpoint(tmp_path / "m", stored, said))


def test_gguf_keeps_its_blocks(tmp_path: Path):
    """Rows of q and k are put back packed; the projections of one layer may have three formats."""
    one = model_of(GGUF)
    tensors = converted_gguf(GGUF, "llama", one)
    kinds = {"blk.0.attn_q.weight": "Q4_0", "blk.0.attn_k.weight": "Q8_0", "blk.0.attn_v.weight": "Q4_1",
             "blk.1.ffn_gate.weight": "Q5_1", "blk.1.ffn_up.weight": "Q5_1"}  # fmt: skip
    path = write_gguf(tmp_path / "x.gguf", "llama", LLAMA, tensors, kinds)
    source = open_source(path)
    model, plain = (loaded(source, packed, read_config(path)) for packed in (True, False))
    qkv = model.blocks[0].self_attn.qkv_proj.packed
    assert [part.scheme.name for part in qkv.parts] == ["q4_0", "q8_0", "q4_1"]
    assert len(model.blocks[1].mlp.gate_up_proj.packed.parts) == 1
    assert model.blocks[1].mlp.down_proj.packed is None
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


# -- random weights, and what stays packed on a GPU ------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp8", "w8a8", "w4a16"])
def test_random_weights_are_packed_layer_by_layer(name: str):
    models = []
    for _ in range(2):
        model = built()
        load_packed(
            model,
            RoundedSource(RandomSource(model, 3), known()[name], torch.bfloat16, "cpu"),
            torch.bfloat16,
            "cpu",
        )
        assert all(layer.weight.is_meta for _, layer in model.linears() if layer.packed is None)
        model.allocate(torch.bfloat16, "cpu")
        dummy(model, 3)
        models.append(model)
    *layers, (_, head) = models[0].linears()
    assert head.packed is None
    for names, layer in layers:
        assert isinstance(layer.packed, PackedRows)
        assert {part.scheme.name for part in layer.packed.weights} == {name}
        assert abs(float(unpacked(layer.packed).std()) * layer.inputs**0.5 - 1) < 0.05, names
    assert torch.equal(logits(models[0].eval()), logits(models[1].eval()))


GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}


@pytest.mark.parametrize(("quantization", "wanted"), [
    (None, False), ({"quant_method": "fp8"}, True), ({"quant_method": "awq", "w_bit": 4}, True),
    ({"quant_method": "gptq", "bits": 8}, False), ({"config_groups": {"a": {"weights": GROUP}}}, True),
    ({"config_groups": {"a": {"weights": {**GROUP, "num_bits": 8}}}}, False),
    ({"config_groups": {"a": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}}, True),
    ({"config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}}, False), ({"quant_method": "x"}, False),
])  # fmt: skip
def test_what_has_kernels_stays_packed(quantization: Any, wanted: bool):
    assert multiplied_packed(quantization) is wanted
