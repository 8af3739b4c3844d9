"""A step as a model's last layer sees it where nothing but what follows each row's last token is wanted.

The other tokens need keys and values of that layer, and nothing that comes after these: no attention of their own, no
feed-forward block. Of prompts that is most of the layer.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from headrace.nn.attention import Attention
from headrace.nn.step import Entire

if TYPE_CHECKING:
    from headrace.engine.batch import Batch


class Ends(Entire):
    """The `Step` that the layer sees, and the `BatchView` of its attention: the last of each row's queries.

    A row without tokens, as `Batch.fill` adds them, stands for the last token before it; what is computed for it is of
    no use.
    """

    single = True

    def __init__(self, batch: "Batch", every: Tensor):
        """`every` [rows + 1] int32 counts from 0, on the batch's device."""
        self._batch = batch
        self.rows = self.tokens = batch.rows
        self.starts, self.starts_np = every, np.arange(batch.rows + 1, dtype=np.int32)
        self.ids, self.positions, self.slots = batch.ids, batch.positions, batch.slots
        self.context, self.context_np, self.tables = batch.context, batch.context_np, batch.tables

    @cached_property
    def _at(self) -> Tensor:
        """[rows] int64: where among the step's tokens."""
        return self._batch.starts[1:].long().sub_(1)

    def attend(self, layer: Attention, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """As Step.attend, but [rows, H, D]."""
        batch = self._batch
        turned_THD = batch.store(layer, q_THD, k_TKD, v_TKD)
        caches = batch.caches(layer)
        return batch.backend.run(layer, turned_THD.index_select(0, self._at), self, *caches)

    def keep(self, x_TE: Tensor) -> Tensor:
        """See Step.keep: [rows, E]."""
        return x_TE.index_select(0, self._at)
