"""Texts that arrive in pieces."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T", bound=Sequence)


def pieces(whole: T, cuts: Iterable[int]) -> list[T]:
    """The whole, cut at these places; those beyond its end count as its end."""
    edges = [0, *sorted({min(cut, len(whole)) for cut in cuts}), len(whole)]
    return [whole[a:b] for a, b in pairwise(edges)]  # type: ignore[misc]
