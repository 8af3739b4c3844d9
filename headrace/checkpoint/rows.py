"""Some rows of a matrix in a checkpoint, without the rest of it: an embedding may be larger than all else in memory."""

from math import prod

import torch
from torch import Tensor

from headrace.checkpoint.quantized import QuantizedSource
from headrace.checkpoint.shards import WIDTHS
from headrace.checkpoint.source import GgufSource, SafetensorsSource, Source, is_permuted
from headrace.quant.ggml import dequantize_into


def read_rows(source: Source, name: str, start: int, stop: int) -> Tensor:
    """Rows start to stop of a matrix, float32, on CPU. Raises BadCheckpoint where it cannot be read.

    What is quantized, or lies in another order, is read as a whole, of which the rest is dropped.
    """
    if isinstance(source, QuantizedSource) and source.stored_as(name) == [name]:
        source = source.tensors
    if isinstance(source, SafetensorsSource):
        return source.rows(name, start, stop).float()
    if isinstance(source, GgufSource) and not is_permuted(name):
        raw, entry = source.stored(name)
        row = entry.nbytes // entry.shape[0]
        out = torch.empty(stop - start, *entry.shape[1:], device="cpu")
        dequantize_into(raw[start * row : stop * row], entry.type, out)
        return out
    return source.read(name)[start:stop].float()


def stored_bytes(source: Source, name: str) -> int:
    """Bytes that a tensor has in a checkpoint; 0 where it is not there, 16 bits each where that is not known."""
    if name not in source.names():
        return 0
    if isinstance(source, QuantizedSource):
        return sum(stored_bytes(source.tensors, each) for each in source.stored_as(name))
    if isinstance(source, GgufSource):
        return source.stored(name)[1].nbytes
    count = prod(source.shape(name))
    if isinstance(source, SafetensorsSource):
        return count * WIDTHS.get(source.kind(name), 2)
    return count * 2
