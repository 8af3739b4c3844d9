"""Which layers share a block table: layers that see equally far, cut into groups of equal depth.

Every group keeps the same number of layers, so that a block of any group has the same size in bytes and
one pool serves all. A model whose layers are all alike has one group. Gemma 3 with 4 full and 22 windowed
layers has one full group of 4 and six windowed ones, the last of them padded with two layers that no one uses.
"""

from collections.abc import Sequence
from typing import NamedTuple

from headrace.engine.blocks import Group

WASTE = 0.1
"""Part of the cache that padding may take before smaller groups, hence more tables, are preferred."""


class Place(NamedTuple):
    """Where a layer's keys and values are: its group's table, and which of the cache's tensors."""

    group: int
    tensor: int


class Layout(NamedTuple):
    groups: tuple[Group, ...]
    places: tuple[Place, ...]
    depth: int


def lay_out(windows: Sequence[int | None]) -> Layout:
    """Layout for layers with these windows (None sees everything)."""
    kinds = list(dict.fromkeys(windows))
    counts = [sum(w == kind for w in windows) for kind in kinds]
    depth = next(d for d in range(min(counts), 0, -1) if _padding(counts, d) <= WASTE * len(windows))
    groups: list[Group] = []
    first: dict[int | None, int] = {}
    for kind, count in zip(kinds, counts, strict=True):
        first[kind] = len(groups)
        groups += [Group(kind)] * -(-count // depth)
    seen = dict.fromkeys(kinds, 0)
    places: list[Place] = []
    for kind in windows:
        n = seen[kind]
        seen[kind] += 1
        places.append(Place(first[kind] + n // depth, n % depth))
    return Layout(tuple(groups), tuple(places), depth)


def _padding(counts: list[int], depth: int) -> int:
    return sum(-(-count // depth) * depth - count for count in counts)
