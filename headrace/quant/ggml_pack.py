"""Numbers into GGML blocks: the counterparts of ggml.py's unpackers.

The formats of 32 are rounded as the reference does, so that files agree byte for byte; those of 256, whose
reference searches for its scales, by plain rounding. Each takes float32 [N, elements] to uint8 [N, bytes].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.quant.ggml import KINDS

Pack = Callable[[Tensor], Tensor]


def _bytes(*parts: Tensor) -> Tensor:
    """Tensors [N, ...] of any type as bytes side by side."""
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def _half(x: Tensor) -> Tensor:
    return x.to(torch.float16)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))


def _extreme(x: Tensor) -> Tensor:
    """The first of the numbers farthest from zero, with its sign: [..., 1]."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _floor(x: Tensor, inverse: Tensor, shift: float, top: int) -> Tensor:
    """x * inverse + shift as a whole number up to `top`, rounded once only."""
    return (x.double() * inverse.double() + shift).trunc().clamp(0, top).to(torch.uint8)


def _nibbles(values: Tensor, group: int) -> Tensor:
    """Of each 2 * group values the first half in low nibbles, the second in high ones."""
    pairs = values.unflatten(1, (-1, 2, group))
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)


def _word(bits: Tensor) -> Tensor:
    """32 bits [N, 32], first lowest, as bytes [N, 4]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unflatten(1, (4, 8)) << shifts).sum(2).to(torch.uint8)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(1, keepdim=True) / 127
    values = x * _inverse(scale)
    values = values.sign() * (values.abs() + 0.5).floor()  # halves away from zero
    return _bytes(_half(scale), values.to(torch.int8))


def _q4_0(x: Tensor) -> Tensor:
    scale = _extreme(x) / -8
    return _bytes(_half(scale), _nibbles(_floor(x, _inverse(scale), 8.5, 15), 16))


def _q5_0(x: Tensor) -> Tensor:
    scale = _extreme(x) / -16
    values = _floor(x, _inverse(scale), 16.5, 31)
    return _bytes(_half(scale), _word(values >> 4), _nibbles(values & 15, 16))


def _span(x: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, least and values of blocks that store their least number."""
    least = x.amin(1, keepdim=True)
    scale = (x.amax(1, keepdim=True) - least) / top
    values = ((x - least) * _inverse(scale) + 0.5).trunc().clamp(0, top)
    return scale, least, values.to(torch.uint8)


def _q4_1(x: Tensor) -> Tensor:
    scale, least, values = _span(x, 15)
    return _bytes(_half(scale), _half(least), _nibbles(values, 16))


def _q5_1(x: Tensor) -> Tensor:
    scale, least, values = _span(x, 31)
    return _bytes(_half(scale), _half(least), _word(values >> 4), _nibbles(values & 15, 16))


def _sub_blocks(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Header (scales and minima of eight sub-blocks in 6 bits) uint8 [N, 16] and values uint8 [N, 256]."""
    parts = x.unflatten(1, (8, 32))
    minima = parts.amin(2).clamp_max(0).neg()
    scales = (parts.amax(2).clamp_min(0) + minima) / top
    headers, small = [], []
    for number in (scales, minima):
        unit = _half(number.amax(1, keepdim=True) / 63)
        sixths = (number * _inverse(unit.float())).round().clamp(0, 63)
        headers.append(unit)
        small.append((sixths.to(torch.uint8), sixths * unit.float()))
    (scale6, scale), (minimum6, minimum) = small
    values = (parts + minimum.unsqueeze(2)) * _inverse(scale).unsqueeze(2)
    first, last = slice(0, 4), slice(4, 8)
    twelve = [
        scale6[:, first] | ((scale6[:, last] >> 4) << 6),
        minimum6[:, first] | ((minimum6[:, last] >> 4) << 6),
        (scale6[:, last] & 15) | ((minimum6[:, last] & 15) << 4),
    ]
    return _bytes(*headers, *twelve), values.round().clamp(0, top).to(torch.uint8).flatten(1)


def _q4_k(x: Tensor) -> Tensor:
    header, values = _sub_blocks(x, 15)
    return _bytes(header, _nibbles(values, 32))


def _q5_k(x: Tensor) -> Tensor:
    header, values = _sub_blocks(x, 31)
    shifts = torch.arange(8, dtype=torch.uint8, device=x.device).view(8, 1)
    fifth = ((values >> 4).unflatten(1, (8, 32)) << shifts).sum(1).to(torch.uint8)
    return _bytes(header, fifth, _nibbles(values & 15, 32))


def _q6_k(x: Tensor) -> Tensor:
    parts = x.unflatten(1, (16, 16))
    scales = _extreme(parts).squeeze(2) / -32
    unit = _half(_extreme(scales) / -128)
    small = (scales * _inverse(unit.float())).round().clamp(-128, 127)
    values = parts * _inverse(small * unit.float()).unsqueeze(2)
    values = (values.round().clamp(-32, 31) + 32).to(torch.uint8).flatten(1)
    low = _nibbles(values & 15, 64)
    crumbs = (values >> 4).unflatten(1, (2, 4, 32))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=x.device).view(4, 1)
    high = (crumbs << shifts).sum(2).to(torch.uint8).flatten(1)
    return _bytes(low, high, small.to(torch.int8), unit)


PACKERS: dict[str, Pack] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}  # fmt: skip
PIECE = 1 << 20  # elements packed at once


def quantize(weight: Tensor, kind: str) -> Tensor:
    """Blocks uint8 [..., K / elements, bytes] of a weight [..., K] of any float dtype.

    Raises ValueError where rows are not whole blocks.
    """
    form = KINDS[kind]
    form.size(weight.shape)
    blocks = weight.reshape(-1, form.elements)
    pieces = [PACKERS[kind](piece.float()) for piece in blocks.split(max(1, PIECE // form.elements))]
    return torch.cat(pieces).view(*weight.shape[:-1], weight.shape[-1] // form.elements, form.bytes)
