"""Checkpoints in compressed-tensors' formats, as LLM Compressor writes them."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused
from headrace.quant.bits import WORD
from headrace.quant.formats.fp8 import blocks, by_rows, per_row
from headrace.quant.formats.layer import (
    FLOATS,
    Layer,
    Stored,
    grid_of,
    group_order,
    one,
    refused,
    shape2,
    signed,
    tensor,
    whole,
)
from headrace.quant.scheme import Scheme
from headrace.quant.schemes import fp8, fp8_block, int8, mxfp4, nvfp4, sparse24, w8a8
from headrace.quant.schemes.fp8 import E4M3

METHODS = ("compressed-tensors",)
REFUSED = ("marlin-24", "sparse-bitmask", "mxfp8-quantized", "mxfp6-pack-quantized")
log = logging.getLogger(__name__)

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Layers quantized alike: their names or patterns, and what is done to weights and inputs."""

    targets: tuple[str, ...]
    weights: Arguments
    inputs: Arguments | None


@dataclass(frozen=True)
class CompressedTensors:
    """The tensors of a layer depend on the arguments of the group that its name is in."""

    groups: tuple[Group, ...]
    where: str

    marks = frozenset({"weight_packed", "weight_scale", "compressed"})

    def open(self, layer: Layer) -> Stored:
        if "compressed" in layer.suffixes:
            return _sparse(layer)
        group = self._group(layer.name)
        weights, inputs = group.weights, group.inputs
        bits, kind = weights["num_bits"], weights.get("type", "int")
        match kind, bits:
            case "int", int() if 2 <= bits <= 8:
                product = _product(layer, weights, inputs)
                return _integers(layer, weights) if product is None else product
            case "float", 8:
                return _fp8(layer, weights, inputs)
            case "float", 4:
                return _fp4(layer, weights)
        raise refused(layer.name, f"{kind!r} weights of {bits!r} bits")

    def _group(self, name: str) -> Group:
        """By name, then by pattern, then by class."""
        rules = (
            lambda target: target == name,
            lambda target: target.startswith("re:") and re.match(target[3:], name) is not None,
            lambda target: not target.startswith("re:") and "." not in target and target[:1].isupper(),
        )
        for rule in rules:
            for group in self.groups:
                if any(rule(target) for target in group.targets):
                    return group
        raise BadCheckpoint(f"{self.where} says nothing of {name}, which is stored quantized")


def _strategy(arguments: Arguments) -> str:
    size = arguments.get("group_size")
    return arguments.get("strategy") or ("tensor" if size is None else "group" if size > 0 else "channel")


# -- integers -----------------------------------------------------------------------------------------------


def _product(layer: Layer, weights: Arguments, inputs: Arguments | None) -> Stored | None:
    """For one of our products of integers; None for the one with inputs as they are.

    That is also what is done where inputs would be rounded as we do not.
    """
    if inputs is None:
        return None
    whole_rows = _strategy(weights) in ("channel", "tensor") and "weight" in layer.suffixes
    eight = inputs.get("type", "int") == "int" and inputs.get("num_bits") == 8
    if whole_rows and eight and weights.get("symmetric", True):
        match inputs.get("dynamic"), inputs.get("symmetric", True):
            case True, symmetric:
                scheme = w8a8.SCHEMES["w8a8"] if symmetric else int8.SCHEMES["int8"]
                return by_rows(layer, scheme, torch.int8)
            case False, True if _strategy(inputs) == "tensor":
                return by_rows(layer, w8a8.SCHEMES["w8a8_static"], torch.int8, inputs=["input_scale"])
    log.info("%s: inputs stay as they are, although the checkpoint would have them rounded", layer.name)
    return None


def _integers(layer: Layer, weights: Arguments) -> Stored:
    """Values in words, or one to a byte; a scale for each group, row, or all."""
    bits, strategy = weights["num_bits"], _strategy(weights)
    if strategy not in ("group", "channel", "tensor"):
        raise refused(layer.name, f"integers with a scale per {strategy}")
    packed = "weight_packed" in layer.suffixes
    rows, columns = _shape(layer) if packed else shape2(layer, "weight")
    group = whole(weights.get("group_size"), "group_size", layer.name) if strategy == "group" else 0
    if bits == 4 and columns % 8:
        raise refused(layer.name, f"{columns} columns of 4 bits, which fill no words of 8,")
    grid = grid_of(layer, bits, group, columns)
    names = {
        "weight_packed", "weight_shape", "weight", "weight_scale", "weight_zero_point", "weight_g_idx", "input_scale",
        "input_zero_point",
    }  # fmt: skip

    def convert() -> tuple[Scheme, dict[str, Tensor]]:
        values = _values(layer, bits, columns) if packed else tensor(layer, "weight", (torch.int8,))
        if grid.group:
            scale = tensor(layer, "weight_scale", FLOATS, (rows, grid.groups))
        else:
            scale = per_row(layer, "weight_scale", rows)
        zero = _zero(layer, bits, rows, grid.groups)
        return grid.assemble(values, scale, zero, group_order(layer, "weight_g_idx", grid))

    return Stored((rows, columns), layer.suffixes & names, convert)


def _shape(layer: Layer) -> tuple[int, int]:
    shape = tensor(layer, "weight_shape", (torch.int64, torch.int32), (2,)).tolist()
    if min(shape) < 1 or shape[0] != shape2(layer, "weight_packed")[0]:
        raise BadCheckpoint(f"{layer.name}.weight_shape is {shape}, which its values are not")
    return shape[0], shape[1]


def _values(layer: Layer, bits: int, columns: int) -> Tensor:
    words = tensor(layer, "weight_packed", (torch.int32,))
    if words.shape[1] == -(-columns * bits // WORD):
        return signed(words, bits, columns)
    each = WORD // bits  # before version 0.17 no value was in two words
    if words.shape[1] != -(-columns // each):
        raise BadCheckpoint(
            f"{layer.name}.weight_packed has {words.shape[1]} words for {columns} columns of {bits} bits"
        )
    shifts = torch.arange(each, dtype=torch.int32) * bits
    fields = ((words.unsqueeze(-1) >> shifts) & (1 << bits) - 1).flatten(1)[:, :columns]
    return (fields - (1 << bits - 1)).to(torch.int8)


def _zero(layer: Layer, bits: int, rows: int, groups: int) -> Tensor | None:
    """int8 [N, G], whether it lies so or in words along N."""
    if "weight_zero_point" not in layer.suffixes:
        return None
    dense, loose = -(-rows * bits // WORD), -(-rows // (WORD // bits))
    found = tensor(layer, "weight_zero_point", (torch.int8, torch.int32))
    shapes = ((rows, groups), (1,)) if found.dtype == torch.int8 else ((dense, groups), (loose, groups))
    tensor(layer, "weight_zero_point", (found.dtype,), *shapes)
    if found.dtype == torch.int8:
        return found.expand(rows, groups)
    if found.shape[0] != dense:
        raise refused(layer.name, f"zero points of {bits} bits as before compressed-tensors 0.17")
    return signed(found.T.contiguous(), bits, rows).T


# -- floats -------------------------------------------------------------------------------------------------


def _fp8(layer: Layer, weights: Arguments, inputs: Arguments | None) -> Stored:
    strategy = _strategy(weights)
    if strategy == "block":
        if _pair(weights.get("block_structure")) != [fp8_block.BLOCK] * 2 or inputs is None:
            raise refused(layer.name, f"8-bit floats in blocks of {weights.get('block_structure')}")
        return blocks(layer, "weight_scale")
    if strategy not in ("channel", "tensor"):
        raise refused(layer.name, f"8-bit floats with a scale per {strategy}")
    if inputs is None:
        return by_rows(layer, fp8.SCHEMES["fp8_a16"], E4M3)
    if inputs.get("type") != "float" or inputs.get("num_bits") != 8:
        raise refused(layer.name, f"inputs of {inputs.get('num_bits')} bits for weights in 8-bit floats")
    if inputs.get("dynamic") is False:
        return by_rows(layer, fp8.SCHEMES["fp8_static"], E4M3, inputs=["input_scale"])
    return by_rows(layer, fp8.SCHEMES["fp8"], E4M3)


def _pair(given: Any) -> list[int] | None:
    """[128, 128], which older files write as "128x128"."""
    if isinstance(given, str):
        return [int(size) for size in given.split("x") if size.isdecimal()]
    return list(given) if isinstance(given, list | tuple) else None


def _fp4(layer: Layer, weights: Arguments) -> Stored:
    """Inputs, which a checkpoint may want in 4 bits, too, stay as they are."""
    rows, half = shape2(layer, "weight_packed")
    columns = 2 * half
    group = whole(weights.get("group_size"), "group_size", layer.name)
    taken = layer.suffixes & {"weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"}
    if "weight_global_scale" in layer.suffixes and group == nvfp4.GROUP:
        scheme, dtype, divisor = nvfp4.SCHEMES["nvfp4"], E4M3, one(layer, "weight_global_scale")
    elif group == mxfp4.GROUP:
        scheme, dtype, divisor = mxfp4.SCHEMES["mxfp4"], torch.uint8, None
    else:
        raise refused(layer.name, f"4-bit floats in groups of {group}")

    def convert() -> tuple[Scheme, dict[str, Tensor]]:
        packed = {
            "weight": tensor(layer, "weight_packed", (torch.uint8,)),
            "scale": tensor(layer, "weight_scale", (dtype,), (rows, columns // group)),
        }
        return scheme, packed if divisor is None else {**packed, "divisor": divisor}

    return Stored((rows, columns), taken, convert)


# -- sparse -------------------------------------------------------------------------------------------------


def _sparse(layer: Layer) -> Stored:
    """Two of four kept: what versions before 0.15 wrote."""
    rows, half = shape2(layer, "compressed")
    columns = 2 * half
    quantized = "weight_scale" in layer.suffixes
    taken = layer.suffixes & {"compressed", "bitmask", "shape", "weight_scale"}
    if reason := sparse24.SCHEMES["sparse24"].fits(rows, columns):
        raise refused(layer.name, reason)

    def convert() -> tuple[Scheme, dict[str, Tensor]]:
        mask = tensor(layer, "bitmask", (torch.uint8,), (rows, columns // sparse24.BYTE))
        if not bool((sparse24.chosen(mask).sum(2) == sparse24.KEPT).all()):
            raise BadCheckpoint(f"{layer.name}.bitmask does not keep two of every four columns")
        kept = tensor(layer, "compressed", (E4M3,) if quantized else FLOATS)
        packed = {"weight": kept, "mask": mask}
        if not quantized:
            return sparse24.SCHEMES["sparse24"], packed
        packed["scale"] = per_row(layer, "weight_scale", rows)
        return sparse24.SCHEMES["sparse24_fp8"], packed

    return Stored((rows, columns), taken, convert)


def read(config: dict[str, Any], where: str) -> CompressedTensors:
    sparsity = _object(config.get("sparsity_config"), "sparsity_config", where).get("format", "dense")
    for said in (config.get("format"), sparsity):
        _check_format(said, where)
    if _object(config.get("transform_config"), "transform_config", where).get("config_groups"):
        raise Refused(f"{where}: transforms of activations (transform_config) are not supported")
    groups = []
    for name, given in _object(config.get("config_groups"), "config_groups", where).items():
        of = f"config_groups.{name}"
        group = _object(given, of, where)
        _check_format(group.get("format"), where)
        weights = _object(group.get("weights"), f"{of}.weights", where)
        inputs = _object(group.get("input_activations"), f"{of}.input_activations", where)
        if weights:
            targets = _targets(group.get("targets"), f"{where}: {of}.targets")
            groups.append(Group(targets, {"num_bits": 8, **weights}, inputs or None))
    return CompressedTensors(tuple(groups), where)


def _object(value: Any, what: str, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise BadCheckpoint(f"{where}: {what} is {value!r}; an object was expected")
    return value or {}


def _check_format(said: Any, where: str) -> None:
    if said in REFUSED:
        raise Refused(f"{where}: compressed-tensors in the format {said!r} is not supported")


def _targets(given: Any, what: str) -> tuple[str, ...]:
    if not isinstance(given, list | None) or not all(isinstance(target, str) for target in given or ()):
        raise BadCheckpoint(f"{what} is {given!r}; a list of names was expected")
    for target in given or ():
        try:
            re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
        except re.error as fault:
            raise BadCheckpoint(f"{what} has {target!r}: {fault}") from fault
    return tuple(given or ())
