"""Weights some rows at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 1 << 19
"""Elements of a weight that are looked at once: a search holds a few copies of them."""
ON_GPU = 128
"""So many times as many where launches cost more than memory."""


def pieces(weight_NK: Tensor, elements: int = PIECE) -> Iterator[Tensor]:
    """Some rows after the other, about so many elements at a time."""
    elements *= ON_GPU if weight_NK.is_cuda else 1
    yield from weight_NK.split(max(1, elements * len(weight_NK) // weight_NK.numel()))


def stacked(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Packed rows on top of each other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
