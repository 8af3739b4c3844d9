"""A model as tensors to save: as it is quantized, in compressed-tensors' layout, or unpacked."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.nn.decoder import Decoder
from headrace.nn.linear import Linear
from headrace.nn.packed import PackedRows
from headrace.quant.export import config, written
from headrace.quant.plain import PLAIN
from headrace.quant.scheme import Packed, Scheme

HEAD = "lm_head"


def packed_layers(model: Decoder) -> Iterator[tuple[str, Scheme, Packed]]:
    """(name in a checkpoint, scheme, tensors) of every quantized weight.

    Raises Refused for layers whose weights are in the order of a CPU's product.
    """
    for names, layer in model.linears():
        if layer.packed is None:
            continue
        if not isinstance(layer.packed, PackedRows):
            raise Refused(
                "weights prepared for a CPU's 8-bit product cannot be saved", param="model.quantization"
            )
        for name, (start, stop) in _rows(names, layer):
            yield name, *layer.packed.rows(start, stop)


def quantization(model: Decoder) -> dict[str, Any] | None:
    """config.json's quantization_config; None where nothing is quantized."""
    layers = {name: scheme for name, scheme, _ in packed_layers(model) if scheme is not PLAIN}
    every = [name for names, _ in model.linears() for name in names]
    # A tied head has no weight of its own, but is a layer for whoever reads this.
    ignore = [name for name in dict.fromkeys([*every, HEAD]) if name not in layers]
    return config(layers, ignore) if layers else None


def packed_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything, quantized weights as compressed-tensors has them."""
    for name, tensor in model.sources():
        yield name, tensor
    for name, scheme, packed in packed_layers(model):
        tensors = packed if scheme is PLAIN else written(scheme).tensors(scheme, packed)
        for suffix, tensor in tensors.items():
            yield f"{name}.{suffix}", tensor


def plain_tensors(model: Decoder, dtype: torch.dtype = torch.bfloat16) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor in `dtype`) of everything, quantized weights unpacked one by one."""
    for name, tensor in model.sources():
        yield name, tensor.to(dtype)
    for name, scheme, packed in packed_layers(model):
        yield f"{name}.weight", scheme.unpack(packed, dtype)


def _rows(names: list[str], layer: Linear) -> Iterator[tuple[str, tuple[int, int]]]:
    yield from zip(names, pairwise(accumulate(layer.outputs, initial=0)), strict=True)
