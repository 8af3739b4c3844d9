"""The contract of attention back ends: what they are told about a step, and what they must answer.

A file of this folder that is a back end offers
    fits(device: torch.device, head_dim: int) -> str | None    in words why it cannot serve a model, or None
    records(dtype, block_size: int, group: int) -> bool        whether a decoding step of such a model (`group` query
                                                               heads per kv head) may be recorded as a CUDA graph;
                                                               then Backend has plan_recorded, too
    Backend(fixed: bool = False)                               the class below; `fixed`: a query's result is the same
                                                               bits in any chunk of its row and any company

T tokens and R rows (sequences) in the step, H query heads, K kv heads, D head size. Each layer's keys and
values live in two tensors [blocks, block_size, K, D]; a row's tables say which blocks hold its positions.
Block 0 is void: it is never handed out, and padded rows write there.
"""

from collections.abc import Hashable
from typing import Protocol

import numpy as np
from torch import Tensor

from headrace.kernels.paged import Pages, Scores


class Layer(Protocol):
    """What a back end may ask of an attention layer."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: int | None
    group: int
    k_scale: float
    v_scale: float

    def rotation(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, float, float]:
        """RoPE's table, the weights of QK-norm, eps and offset; see kernels/rotate.py."""
        ...


class BatchView(Protocol):
    """What a back end may read of a step; filled before `plan`, unchanged until the step has run.

    rows, tokens      R and T; tokens may be fewer than the queries handed to `run` (the rest is padding)
    starts            [R + 1] int32, row r owns queries starts[r] .. starts[r + 1] (none for an empty row)
    context           [R] int32, keys of row r after this step; its queries are the last of them
    tables            per layer group: [R, max blocks] int32; entries outside of what a row may see are stale
    slots             per layer group: [T] int64, block * block_size + offset where a token's key is stored
    positions         [T] int64
    single            every row has one query, or none, also where the step that was planned has more: its last layer
    starts_np, context_np   the same on the host
    """

    rows: int
    tokens: int
    starts: Tensor
    context: Tensor
    tables: list[Tensor]
    slots: list[Tensor]
    positions: Tensor
    single: bool
    starts_np: np.ndarray
    context_np: np.ndarray


class Backend(Protocol):
    """Queries against a paged cache. One object serves all layers of a model, one step at a time.

    Query i of a row, at position p = context - (queries of the row) + i, sees keys j <= p, and with a window
    only those with p - j < window.
    """

    def plan(self, batch: BatchView) -> None:
        """Prepare for a step, once, before the first layer runs."""
        ...

    def plan_recorded(self, batch: BatchView) -> Hashable | None:
        """As plan, for a step with prompts that is to be recorded, or replayed with other lengths.

        Its rows may be followed by empty ones. What of the step a recording is made for: only steps that have the
        same may replay it. None if the step cannot be recorded.
        """
        ...

    def run_new(
        self,
        layer: Layer,
        qkv: tuple[Tensor, Tensor, Tensor],
        batch: BatchView,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor | None:
        """As run, of what the projection gives: norms and rotates q and k, and stores k and v, as well.

        None, and nothing is done, where that is to be done before `run`. Asked on GPUs only.
        """
        ...

    def run(self, layer: Layer, q_THD: Tensor, batch: BatchView, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """Attention of one layer: [T, H, D], in q's dtype. The step's own keys are in the cache already."""
        ...


def pages_of(layer: Layer, batch: BatchView, k_cache: Tensor, v_cache: Tensor) -> Pages:
    """Where the keys and values of a step's rows are for a layer."""
    rows = batch.rows
    table, starts, context = batch.tables[layer.group], batch.starts[: rows + 1], batch.context[:rows]
    return Pages(k_cache, v_cache, table, starts, context, layer.k_scale, layer.v_scale)


def scores_of(layer: Layer) -> Scores:
    """How a layer forms its scores."""
    return Scores(layer.scale, layer.softcap, layer.window)
