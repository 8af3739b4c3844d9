"""What the engine counts as it goes: for metrics."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Tokens up to which a step is counted with others of its size."""
GUESSES = 16
"""Right guesses are counted by where they stood, up to this place in their row."""


@dataclass(slots=True)
class Counts:
    """What happened since the start, for metrics."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    evictions: int = 0
    recomputed_tokens: int = 0
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: list[int] = field(default_factory=lambda: [0] * GUESSES)

    def begin(self, prompt: int, cached: int) -> None:
        """A request is computed for the first time: so many tokens, of which so many were found."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached

    def draft(self, tokens: int) -> None:
        """A row carries so many guesses."""
        self.drafts += 1
        self.drafted_tokens += tokens

    def accept(self, right: int) -> None:
        """So many guesses of a row were right, from its first one on."""
        self.accepted_tokens += right
        for place in range(min(right, GUESSES)):
            self.accepted_at[place] += 1


class Tally:
    """Steps so far, by size. `sizes` has a count per edge, one for what is above, and the sum of tokens."""

    __slots__ = ("rows", "sizes")

    def __init__(self) -> None:
        self.rows = 0
        self.sizes = [0] * (len(EDGES) + 2)

    def count(self, rows: Sequence[tuple[int, int]]) -> int:
        """Count a step of rows (first position, last position + 1); how many tokens it has."""
        tokens = sum(stop - start for start, stop in rows)
        self.rows += len(rows)
        self.sizes[bisect_left(EDGES, tokens)] += 1
        self.sizes[-1] += tokens
        return tokens
