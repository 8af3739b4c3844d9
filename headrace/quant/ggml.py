"""GGML block formats: what each looks like on disk, and how to get numbers back out of it.

A tensor is a row of blocks along its last dimension; a block holds a fixed number of elements in a fixed
number of bytes. Unpackers fill `out` (float32, [N, elements]) from `blocks` (uint8, [N, bytes]) with
the roundings of the reference, in its order: product first, then sum, never fused, so that results agree bit
for bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Unpack = Callable[[Tensor, Tensor], None]

PIECE = {"cpu": 1 << 20}  # elements unpacked at once: on a CPU the intermediates should stay in the cache
PIECE_ELSEWHERE = 1 << 25


@dataclass(frozen=True, slots=True)
class Kind:
    """A block format: its name, how many elements a block holds, in how many bytes, and how to read them."""

    name: str
    elements: int
    bytes: int
    unpack: Unpack

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape. Raises ValueError where rows are not whole blocks."""
        last = shape[-1] if shape else 1
        if last % self.elements:
            raise ValueError(f"rows of {last} elements are not whole {self.name} blocks of {self.elements}")
        return math.prod(shape) // self.elements * self.bytes


# -- pieces of blocks ---------------------------------------------------------------------------------------


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, as float32 [N, 1]."""
    return blocks[:, start : start + 2].clone().view(torch.float16).float()


def _signed(part: Tensor) -> Tensor:
    return part.contiguous().view(torch.int8)


def _nibbles(part: Tensor, group: int) -> Tensor:
    """Low nibbles of each `group` bytes, then their high nibbles: uint8 [N, groups, 2, group]."""
    packed = part.unflatten(1, (-1, group))
    return torch.stack([packed & 15, packed >> 4], dim=2)


def _crumbs(part: Tensor, group: int) -> Tensor:
    """Two-bit fields of each `group` bytes, lowest bits first: uint8 [N, groups, 4, group]."""
    packed = part.unflatten(1, (-1, group))
    return torch.stack([packed & 3, (packed >> 2) & 3, (packed >> 4) & 3, packed >> 6], dim=2)


def _bits(part: Tensor) -> Tensor:
    """Bit b of every byte, lowest first: uint8 [N, 8, bytes]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=part.device)
    return (part.unsqueeze(1) >> shifts.view(1, 8, 1)) & 1


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """Bit j of the 32-bit word at byte `start` is worth 16 for element j: uint8 [N, 32]."""
    return _bits(blocks[:, start : start + 4]).transpose(1, 2).reshape(-1, 32) << 4


def _sixes(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit minima from bytes 4 to 15: float32 [N, 8] each."""
    a, b, c = blocks[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([a & 63, (c & 15) | ((a >> 2) & 48)], dim=1)
    minima = torch.cat([b & 63, (c >> 4) | ((b >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


# -- plain numbers ------------------------------------------------------------------------------------------


def _plain(dtype: torch.dtype) -> Unpack:
    def unpack(blocks: Tensor, out: Tensor) -> None:
        aligned = blocks.clone() if blocks.storage_offset() % dtype.itemsize else blocks
        out.copy_(aligned.view(dtype))

    return unpack


# -- blocks of 32 -------------------------------------------------------------------------------------------


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 2:], 16).view(-1, 32))
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 4:], 16).view(-1, 32))
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 6:], 16).view(-1, 32) | _fifth_bits(blocks, 2))
    out.sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 8:], 16).view(-1, 32) | _fifth_bits(blocks, 4))
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_signed(blocks[:, 2:]))
    out.mul_(_half(blocks, 0))


# -- blocks of 256: sub-blocks with small scales of their own ("K-quants") ----------------------------------


def _affine(out: Tensor, q: Tensor, scales: Tensor, minima: Tensor) -> None:
    """out = scale * q - minimum, one of each per sub-block."""
    parts = out.unflatten(1, (scales.shape[1], -1))
    parts.copy_(q.reshape(parts.shape))
    parts.mul_(scales.unsqueeze(2)).sub_(minima.unsqueeze(2))


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    small = blocks[:, :16]
    scales = _half(blocks, 80) * (small & 15).float()
    minima = _half(blocks, 82) * (small >> 4).float()
    _affine(out, _crumbs(blocks[:, 16:80], 32), scales, minima)


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    high, low, small = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    six = _nibbles(small[:, :8], 8).view(-1, 16) | (_crumbs(small[:, 8:], 4).view(-1, 16) << 4)
    scales = _half(blocks, 108) * (six.float() - 32)
    q = _crumbs(low, 32).view(-1, 256) | (_bits(high).reshape(-1, 256) << 2)  # high bit clear: minus four
    out.copy_(q)
    out.sub_(4).unflatten(1, (16, 16)).mul_(scales.unsqueeze(2))


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _sixes(blocks)
    _affine(out, _nibbles(blocks[:, 16:], 32), _half(blocks, 0) * scales, _half(blocks, 2) * minima)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _sixes(blocks)
    q = _nibbles(blocks[:, 48:], 32).view(-1, 8, 32) | (_bits(blocks[:, 16:48]) << 4)
    _affine(out, q, _half(blocks, 0) * scales, _half(blocks, 2) * minima)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    q = _nibbles(blocks[:, :128], 64).view(-1, 256) | (_crumbs(blocks[:, 128:192], 32).view(-1, 256) << 4)
    scales = _half(blocks, 208) * _signed(blocks[:, 192:208]).float()
    out.copy_(q)
    out.sub_(32).unflatten(1, (16, 16)).mul_(scales.unsqueeze(2))


TYPES: dict[int, Kind] = {
    0: Kind("F32", 1, 4, _plain(torch.float32)),
    1: Kind("F16", 1, 2, _plain(torch.float16)),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    6: Kind("Q5_0", 32, 22, _q5_0),
    7: Kind("Q5_1", 32, 24, _q5_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    10: Kind("Q2_K", 256, 84, _q2_k),
    11: Kind("Q3_K", 256, 110, _q3_k),
    12: Kind("Q4_K", 256, 144, _q4_k),
    13: Kind("Q5_K", 256, 176, _q5_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _plain(torch.bfloat16)),
}
KINDS: dict[str, Kind] = {kind.name: kind for kind in TYPES.values()}


def dequantize_into(raw: Tensor, kind: str, out: Tensor) -> None:
    """Fill contiguous `out` (any float dtype, any device) from the packed bytes `raw` (uint8, anywhere).

    Arithmetic is float32 whatever the dtype of `out`; the unpacking runs on the device of `out`.
    Raises ValueError where the number of bytes is not what the shape of `out` needs.
    """
    form = KINDS[kind]
    if raw.numel() != form.size(out.shape):
        size = form.size(out.shape)
        raise ValueError(f"{raw.numel()} bytes of {kind}, {size} expected for {list(out.shape)}")
    blocks, target = raw.reshape(-1, form.bytes), out.view(-1, form.elements)
    step = PIECE.get(out.device.type, PIECE_ELSEWHERE) // form.elements
    direct = out.dtype == torch.float32
    spare = None if direct else torch.empty_like(target[:step], dtype=torch.float32)
    for start in range(0, len(blocks), step):
        piece = blocks[start : start + step].to(out.device)
        goal = target[start : start + step]
        wide = goal if spare is None else spare[: len(goal)]
        form.unpack(piece, wide)
        if spare is not None:
            goal.copy_(wide)


def dequantize(raw: Tensor, kind: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers in the packed bytes `raw` (uint8), as a tensor of `shape` (torch order) and `dtype`."""
    out = torch.empty(tuple(shape), dtype=dtype, device=raw.device)
    dequantize_into(raw, kind, out)
    return out
