"""Integers of a few bits in 32-bit words: element i of a row has bits [i*b, i*b + b) of it, lowest first."""

import torch
from torch import Tensor

WORD = 32


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """[..., n] unsigned values below 2^bits to int32 [..., ceil(n * bits / 32)]; missing elements are zero."""
    spare = -values.shape[-1] % (WORD if WORD % bits else WORD // bits)
    values = torch.nn.functional.pad(values.to(torch.int64), (0, spare))
    if WORD % bits == 0:
        fields = values.unflatten(-1, (-1, WORD // bits)) << _shifts(WORD // bits, bits, values)
    else:
        each = (values.unsqueeze(-1) >> _shifts(bits, 1, values)) & 1
        fields = each.flatten(-2).unflatten(-1, (-1, WORD)) << _shifts(WORD, 1, values)
    words = fields.sum(-1)
    count = -(-(values.shape[-1] - spare) * bits // WORD)
    return torch.where(words >= 1 << 31, words - (1 << 32), words)[..., :count].to(torch.int32)


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` values of int32 [..., words], as uint8 [..., count]."""
    if WORD % bits == 0:
        fields = words.unsqueeze(-1) >> _shifts(WORD // bits, bits, words)
        return (fields & (1 << bits) - 1).to(torch.uint8).flatten(-2)[..., :count]
    each = ((words.unsqueeze(-1) >> _shifts(WORD, 1, words)) & 1).flatten(-2)
    each = each[..., : each.shape[-1] // bits * bits].unflatten(-1, (-1, bits))
    return (each << _shifts(bits, 1, words)).sum(-1).to(torch.uint8)[..., :count]


def _shifts(count: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(0, count * step, step, dtype=like.dtype, device=like.device)
