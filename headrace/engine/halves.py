"""Steps cut in two on a CPU, a half of the threads for each: threads that share an operator wait for each other some
thousand times a step, halves of a step hardly at all.
"""

from typing import NamedTuple

import numpy as np

from headrace.engine.batch import Batch

LEAST = 128
"""Tokens that a step with a prompt in it has to have."""
SKEW = 0.6
"""Of all work the first part may have so much."""


class Part(NamedTuple):
    """Tokens start to stop of a step, the rows from `first` on that they are of, what these see. Fields as of Batch."""

    start: int
    stop: int
    first: int
    starts_np: np.ndarray
    context_np: np.ndarray
    row_slots_np: np.ndarray
    tables_np: np.ndarray
    table_np: np.ndarray
    stays: np.ndarray
    block_size: int

    @classmethod
    def of(cls, batch: Batch, start: int, stop: int) -> "Part":
        """Of the step that the batch was filled with."""
        starts = batch.starts_np
        first, last = int(starts.searchsorted(start, "right")) - 1, int(starts.searchsorted(stop))
        hidden = np.maximum(starts[first + 1 : last + 1] - stop, 0)
        return cls(
            start,
            stop,
            first,
            starts[first : last + 1].clip(start, stop) - start,
            batch.context_np[first:last] - hidden,
            batch.row_slots_np[first:last],
            batch.tables[0].numpy()[first:last],
            batch.table_np,
            batch.stays,
            batch.block_size,
        )

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.stop - self.start


def halfway(starts: np.ndarray, few: int) -> int:
    """The row with which, of those with `few` tokens or less, the second half begins. starts [R + 1]."""
    small = np.flatnonzero(np.diff(starts) <= few)
    return int(small[len(small) // 2]) if len(small) else 0


def middle(starts: np.ndarray, context: np.ndarray, few: int, worth: float) -> int:
    """The token that the second part begins with; 0 where the step is not to be cut. starts [R + 1], context [R].

    Rows with `few` tokens or less are halved where there are no others, else they are all in the first part.
    worth: as many keys take a token as long as its products do
    """
    tokens, small = int(starts[-1]), np.flatnonzero(np.diff(starts) <= few)
    if len(small) == len(starts) - 1:
        return int(starts[halfway(starts, few)])
    if tokens < LEAST:
        return 0
    keys = np.arange(tokens) + (context - starts[1:]).repeat(np.diff(starts))
    work = (keys + worth).cumsum()
    cut = max(int(work.searchsorted(work[-1] / 2)), int(starts[small[-1] + 1]) if len(small) else 0)
    return cut if work[cut - 1] <= SKEW * work[-1] else 0
