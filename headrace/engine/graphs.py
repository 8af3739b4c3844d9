"""CUDA graphs: of decoding steps, from embedding to sampled token, and of short steps with prompts.

The first has one graph per padded row count and way of drawing, the second one per padded count of rows and tokens
and per form of the attention, from embedding to hidden states.
"""

from collections.abc import Hashable
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


class Mixed(NamedTuple):
    """Of a step with prompts. `form` is what the attention's recording is made for."""

    rows: int
    tokens: int
    form: Hashable


class Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    out: Tensor


def padded(rows: int) -> int:
    """The row count of the graph that serves `rows`: few graphs, little padding."""
    for upto, step in ((2, 1), (8, 2), (64, 8), (256, 32)):
        if rows <= upto:
            return -(-rows // step) * step
    return -(-rows // 128) * 128


ROWS = 32, 512
"""Rows that steps with prompts are laid out for, or as many as a step may have."""
LAUNCH = 5e-4
"""Seconds that launching the kernels of a layer one by one takes the host."""
RATE = 5e14
"""Multiplications and additions per second that a large product is taken to do."""


def launch_bound(model: Decoder, tokens: int) -> int:
    """The largest step, up to `tokens`, whose arithmetic takes no longer than launching its kernels one by one."""
    products = sum(layer.inputs * sum(layer.outputs) for _, layer in model.linears())
    return min(tokens, int(RATE * LAUNCH * len(model.attentions) / (2 * products)))


def widened(tokens: int) -> int:
    """Tokens that a step with prompts is laid out for: four sizes between powers of two."""
    step = max(16, (1 << (tokens - 1).bit_length()) // 8)
    return -(-tokens // step) * step


class Graphs:
    """Captured when first needed; a capture takes tens of milliseconds, so nothing waits for it at start.

    A step with prompts is recorded the second time that its size comes; the first runs without and compiles kernels.

    All graphs share one memory pool: only one runs at a time, and its output is read before the next replay.
    """

    def __init__(self, model: Decoder, batch: Batch, sampler: Sampler, largest: int):
        self.model, self.batch, self.sampler, self.largest = model, batch, sampler, largest
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(batch.device)
        self.captured: dict[Key | Mixed, Captured] = {}
        self._met: set[Mixed] = set()
        self.most_tokens = 0 if model.deterministic else launch_bound(model, batch.max_tokens)

    def rows_for(self, rows: int) -> int | None:
        """How many rows to lay out for `rows` of them; None if there is no graph that large."""
        size = padded(rows)
        return min(size, self.largest) if rows <= self.largest else None

    def room_for(self, rows: int, tokens: int) -> tuple[int, int] | None:
        """(rows, tokens) to lay out a step with prompts for; None where the device, not the host, takes long."""
        if tokens > self.most_tokens:
            return None
        most = self.batch.nobody
        return next((n for n in ROWS if rows <= n <= most), most), min(widened(tokens), self.batch.max_tokens)

    def hidden(self) -> Tensor:
        """The hidden states [T, E] of the step with prompts that lies in the batch; overwritten by the next run."""
        batch = self.batch
        form = batch.backend.plan_recorded(batch)
        if form is None:
            batch.backend.plan(batch)
            return self._mixed()
        key = Mixed(batch.rows, batch.tokens, form)
        if key not in self.captured:
            if key not in self._met:
                self._met.add(key)
                return self._mixed()
            self.captured[key] = self._record_mixed()
        captured = self.captured[key]
        captured.graph.replay()
        return captured.out

    def _mixed(self) -> Tensor:
        self.batch.gather(self.batch.table.shape[2])
        return self.model(self.batch)

    def _record_mixed(self) -> Captured:
        self.stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            out = self._mixed()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return Captured(graph, out)

    def run(self, plan: Plan | None) -> Tensor:
        """The step that lies in the batch: its tokens [R], or its logits [R, V] where `plan` is None.

        Overwritten by the next run; without plan the caller notes the tokens in `batch.last`.
        """
        key = Key(self.batch.rows, plan)
        if key not in self.captured:
            self.captured[key] = self._capture(plan)
        captured = self.captured[key]
        captured.graph.replay()
        return captured.out

    def _capture(self, plan: Plan | None) -> Captured:
        """Run the step once, so that its kernels are compiled and its memory is there, then record it.

        torch.cuda.graph would also collect Python's garbage and give the allocator's memory back to the driver,
        which takes longer than all the rest while requests are running.
        """
        batch = self.batch
        batch.backend.plan(batch)
        kept = batch.last.clone()  # the first run must not draw the tokens that the replay is to read
        self.stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            self._step(plan)
            batch.last.copy_(kept)
            self.stream.synchronize()
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            out = self._step(plan)
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return Captured(graph, out)

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
