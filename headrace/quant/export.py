"""Our packed weights as compressed-tensors has them: tensors by suffix, and what its config says of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.quant.bits import pack_bits
from headrace.quant.integers import Integers
from headrace.quant.scheme import Packed, Scheme

VERSION = "0.15.0"  # of compressed-tensors, whose layout this is
SPARSE = "sparse-24-bitmask"
HEAD = "lm_head"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """How a scheme is written: the name of the format, its settings, and what makes the tensors."""

    format: str
    weights: dict[str, Any] | None
    inputs: dict[str, Any] | None
    tensors: Callable[[Scheme, Packed], Tensors]


def written(scheme: Scheme) -> Written:
    """How compressed-tensors would have a scheme. Raises Refused for one that it has nothing for."""
    if isinstance(scheme, Integers):
        return Written("pack-quantized", _weights(scheme), None, _words)
    match scheme.name:
        case "w8a8" | "w8a8_static" | "int8":
            return Written("int-quantized", _weights(scheme), _inputs(scheme), _renamed)
        case "fp8" | "fp8_static" | "fp8_block":
            return Written("float-quantized", _weights(scheme), _inputs(scheme), _renamed)
        case "fp8_a16":
            return Written("naive-quantized", _weights(scheme), None, _renamed)
        case "mxfp4":
            return Written("mxfp4-pack-quantized", _weights(scheme), None, _fp4)
        case "nvfp4":
            return Written("nvfp4-pack-quantized", _weights(scheme), None, _fp4)
        case "sparse24":
            return Written(SPARSE, None, None, _sparse)
        case "sparse24_fp8":
            return Written(SPARSE, _weights(scheme), _inputs(scheme), _sparse)
    raise Refused(f"compressed-tensors has no format for {scheme.name}", hint="write a .gguf file instead")


def config(layers: Mapping[str, Scheme], ignore: list[str]) -> dict[str, Any]:
    """config.json's quantization_config for layers (name in the checkpoint -> scheme), and those left as they are.

    Layers of the commonest scheme are meant by their class, all others by name; so is the output head, which is of
    a class of its own in vLLM.
    """
    by_scheme: dict[Scheme, list[str]] = {}
    for name, scheme in layers.items():
        by_scheme.setdefault(scheme, []).append(name)
    groups, formats = {}, set()
    for scheme, names in sorted(by_scheme.items(), key=lambda pair: -len(pair[1])):
        form = written(scheme)
        formats.add(form.format)
        if form.weights is not None:
            kind = "float-quantized" if form.format == SPARSE else form.format
            group = {"weights": form.weights, "input_activations": form.inputs, "output_activations": None}
            targets = names if groups else ["Linear", *(name for name in names if name == HEAD)]
            groups[f"group_{len(groups)}"] = {"targets": targets, "format": kind, **group}
    sparse = {"format": SPARSE, "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": ignore}
    dense = sorted(formats - {SPARSE}) or ["dense" if not groups else "float-quantized"]
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": dense[0] if len(dense) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        **({"sparsity_config": sparse} if SPARSE in formats else {}),
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    spec = scheme.spec
    said: dict[str, Any] = {
        "num_bits": int(spec.bits), "type": spec.kind, "symmetric": spec.symmetric, "strategy": spec.granularity,
        "group_size": spec.group if spec.granularity == "group" else None, "dynamic": False,
    }  # fmt: skip
    if scheme.name == "nvfp4":
        said |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    if scheme.name == "mxfp4":
        said |= {"scale_dtype": "torch.uint8"}
    if spec.granularity == "block":
        said |= {"block_structure": [spec.group, spec.group]}
    if scheme.name == "fp8_static":
        said |= {"strategy": "channel"}  # equal for all rows where it was one for all
    return said


def _inputs(scheme: Scheme) -> dict[str, Any]:
    spec = scheme.spec
    said = {"num_bits": 8, "type": "float" if spec.activation == "fp8" else "int", "dynamic": not spec.static}
    strategy = "tensor" if spec.static else "token"
    if spec.granularity == "block":
        return {**said, "strategy": "group", "group_size": spec.group, "symmetric": True}
    return {**said, "strategy": strategy, "group_size": None, "symmetric": scheme.name != "int8"}


def _renamed(scheme: Scheme, packed: Packed) -> Tensors:
    names = {"weight": "weight", "scale": "weight_scale", "input_scale": "input_scale"}
    return {names[name]: tensor for name, tensor in packed.items()}


def _words(scheme: Scheme, packed: Packed) -> Tensors:
    assert isinstance(scheme, Integers)
    if "order" in packed:
        raise Refused(
            "columns in an order of their own cannot be written: compressed-tensors 0.19 gave them up"
        )
    bits = int(scheme.spec.bits)
    rows, columns = scheme.size(packed)
    middle = 1 << bits - 1
    words = pack_bits(scheme.values(packed).int() + middle, bits)
    made = {
        "weight_packed": words,
        "weight_scale": packed["scale"],
        "weight_shape": torch.tensor([rows, columns], dtype=torch.int64, device="cpu"),
    }
    if "zero" in packed:
        made["weight_zero_point"] = pack_bits(packed["zero"].T.int() + middle, bits).T.contiguous()
    return made


def _fp4(scheme: Scheme, packed: Packed) -> Tensors:
    made = {"weight_packed": packed["weight"], "weight_scale": packed["scale"]}
    return made | ({"weight_global_scale": packed["divisor"]} if "divisor" in packed else {})


def _sparse(scheme: Scheme, packed: Packed) -> Tensors:
    shape = torch.tensor(scheme.size(packed), dtype=torch.int64, device="cpu").reshape(2, 1)
    made = {"compressed": packed["weight"], "bitmask": packed["mask"], "shape": shape}
    return made | ({"weight_scale": packed["scale"]} if "scale" in packed else {})
