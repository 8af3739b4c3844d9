"""Checkpoints in 8-bit floats as DeepSeek and Hugging Face write them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused
from headrace.quant.formats.layer import FLOATS, Layer, Stored, one, shape2, tensor
from headrace.quant.scheme import Scheme
from headrace.quant.schemes.fp8 import E4M3
from headrace.quant.schemes.fp8 import SCHEMES as ROWS
from headrace.quant.schemes.fp8_block import BLOCK
from headrace.quant.schemes.fp8_block import SCHEMES as BLOCKS

METHODS = ("fp8",)


@dataclass(frozen=True)
class Fp8:
    """weight float8_e4m3fn with weight_scale_inv for blocks (which multiplies, for all its name) or weight_scale."""

    static: bool

    marks = frozenset({"weight_scale_inv", "weight_scale"})

    def open(self, layer: Layer) -> Stored:
        if "weight_scale_inv" in layer.suffixes and len(layer.shape("weight_scale_inv")) == 2:
            return blocks(layer, "weight_scale_inv")
        name = "weight_scale_inv" if "weight_scale_inv" in layer.suffixes else "weight_scale"
        inputs = {"input_scale", "activation_scale"} & layer.suffixes if self.static else set()
        if self.static and not inputs:
            raise BadCheckpoint(f"{layer.name} lacks input_scale, which a static activation_scheme needs")
        return by_rows(layer, ROWS["fp8_static" if self.static else "fp8"], E4M3, name, inputs)


def by_rows(
    layer: Layer, scheme: Scheme, dtype: torch.dtype, name: str = "weight_scale", inputs: Collection[str] = ()
) -> Stored:
    """A weight with a scale for each row or for all; `inputs`: suffixes that the one of static inputs may have."""

    def convert() -> tuple[Scheme, dict[str, Tensor]]:
        scale = per_row(layer, name, shape2(layer, "weight")[0])
        if scheme.name == "int8":  # its products take float32 alone
            scale = scale.float()
        packed = {"weight": tensor(layer, "weight", (dtype,)), "scale": scale}
        for suffix in inputs:
            packed["input_scale"] = one(layer, suffix)
        return scheme, packed

    return Stored(shape2(layer, "weight"), frozenset({"weight", name, *inputs}), convert)


def blocks(layer: Layer, name: str) -> Stored:
    """A weight with a scale for each block of 128 x 128."""
    rows, columns = shape2(layer, "weight")

    def convert() -> tuple[Scheme, dict[str, Tensor]]:
        scale = tensor(layer, name, FLOATS, (-(-rows // BLOCK), -(-columns // BLOCK)))
        return BLOCKS["fp8_block"], {"weight": tensor(layer, "weight", (E4M3,)), "scale": scale}

    return Stored((rows, columns), frozenset({"weight", name}), convert)


def per_row(layer: Layer, name: str, rows: int) -> Tensor:
    """A scale for all or one for each row, as one for each: [N, 1]."""
    scale = tensor(layer, name, FLOATS, (), (1,), (rows,), (rows, 1), (1, 1))
    return scale.reshape(-1, 1).expand(rows, 1).contiguous()


def read(config: dict[str, Any], where: str) -> Fp8:
    block = config.get("weight_block_size")
    if block not in (None, [BLOCK, BLOCK]):
        raise Refused(f"{where}: blocks of {block} are not supported; [128, 128] was expected")
    if str(config.get("fmt", "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        raise Refused(
            f"{where}: 8-bit floats of the kind {config['fmt']!r} are not supported; e4m3 was expected"
        )
    scheme = config.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise BadCheckpoint(f"{where}: activation_scheme is {scheme!r}; dynamic or static was expected")
    return Fp8(scheme == "static" and block is None)
