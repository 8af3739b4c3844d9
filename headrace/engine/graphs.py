"""CUDA graphs of decoding steps, from embedding to sampled token: one per padded row count and way of drawing."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.engine.batch import Batch
from headrace.engine.sampler import Sampler
from headrace.kernels.sample import Plan, draw
from headrace.nn.decoder import Decoder


class Key(NamedTuple):
    """`plan` None: the graph ends with logits, for rows that ask for more than a draw."""

    rows: int
    plan: Plan | None


class Captured(NamedTuple):
    replay: Callable[[], None]
    out: Tensor


def padded(rows: int) -> int:
    """The row count of the graph that serves `rows`: few graphs, little padding."""
    for upto, step in ((2, 1), (8, 2), (64, 8), (256, 16), (512, 32)):
        if rows <= upto:
            return -(-rows // step) * step
    return -(-rows // 64) * 64


class Graphs:
    """Captured when first needed; a capture takes tens of milliseconds, so nothing waits for it at start.

    All graphs share one memory pool: only one runs at a time, and its output is read before the next replay.
    """

    def __init__(self, model: Decoder, batch: Batch, sampler: Sampler, largest: int):
        self.model, self.batch, self.sampler, self.largest = model, batch, sampler, largest
        self.pool = torch.cuda.graph_pool_handle()
        self.captured: dict[Key, Captured] = {}

    def rows_for(self, rows: int) -> int | None:
        """How many rows to lay out for `rows` of them; None if there is no graph that large."""
        size = padded(rows)
        return min(size, self.largest) if rows <= self.largest else None

    def run(self, plan: Plan | None) -> Tensor:
        """The step that lies in the batch: its tokens [R], or its logits [R, V] where `plan` is None.

        Overwritten by the next run; without plan the caller notes the tokens in `batch.last`.
        """
        key = Key(self.batch.rows, plan)
        if key not in self.captured:
            self.captured[key] = self._capture(plan)
        captured = self.captured[key]
        captured.replay()
        return captured.out

    def _capture(self, plan: Plan | None) -> Captured:
        batch = self.batch
        batch.backend.plan(batch)
        kept = batch.last.clone()  # the warm-up must not draw the tokens that the replay is to read
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(plan)
            batch.last.copy_(kept)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            out = self._step(plan)
        return Captured(graph.replay, out)

    def _step(self, plan: Plan | None) -> Tensor:
        batch = self.batch
        batch.derive()
        logits_RV = self.model.logits(self.model(batch))
        if plan is None:
            return logits_RV
        settings = None if plan.greedy else self.sampler.settings(batch.row_slots, batch.context.long())
        tokens = draw(logits_RV, settings, plan)
        batch.last.index_copy_(0, batch.row_slots, tokens)
        return tokens
