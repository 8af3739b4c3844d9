"""CUDA graphs: of decoding steps, from embedding to sampled token, and of short steps with prompts.

The first has one graph per padded row count and way of drawing (two where masks come between logits and tokens), the
second one per padded count of rows and tokens and per form of the attention, from embedding to hidden states.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.engine.batch import Batch
from headrace.engine.constrain import Masks
from headrace.engine.sampler import Sampler
from headrace.kernels.forbid import forbid
from headrace.kernels.sample import Draws, draw
from headrace.nn.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Key:
    """`draws` None: the graph ends with logits, for rows that ask for more than a draw."""

    rows: int
    draws: Draws | None


@dataclass(frozen=True, slots=True)
class Masked:
    """From the logits of a `Key` without `draws` to tokens, by masks."""

    rows: int
    draws: Draws


@dataclass(frozen=True, slots=True)
class Mixed:
    """Of a step with prompts. `form` is what the attention's recording is made for, `ends` as Batch has it."""

    rows: int
    tokens: int
    ends: bool
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
BESIDE = 256
"""Of rows that decode beside a full step of prompts, so many make a size of their own."""
LAUNCH = 6e-4
"""Seconds that launching the kernels of a layer one by one takes the host."""
RATE = 5e14
"""Multiplications and additions per second that a large product is taken to do."""


def launch_bound(model: Decoder, tokens: int) -> int:
    """The largest step, up to `tokens`, whose arithmetic takes no longer than launching its kernels one by one."""
    products = sum(layer.inputs * sum(layer.outputs) for _, layer in model.linears())
    return min(tokens, int(RATE * LAUNCH * len(model.attentions) / (2 * products)))


def widened(tokens: int, full: int) -> int:
    """Tokens that a step with prompts is laid out for: four sizes between powers of two, and of rows that decode beside
    a `full` one every BESIDE."""
    if tokens > full:
        return full + -(-(tokens - full) // BESIDE) * BESIDE
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
        self.captured: dict[Key | Masked | Mixed, Captured] = {}
        self._places: _Places | None = None
        self._met: set[Mixed] = set()
        self.most_tokens = 0 if model.deterministic else launch_bound(model, batch.max_tokens)

    def rows_for(self, rows: int) -> int | None:
        """How many rows to lay out for `rows` of them; None if there is no graph that large."""
        size = padded(rows)
        return min(size, self.largest) if rows <= self.largest else None

    def room_for(self, rows: int, tokens: int) -> tuple[int, int]:
        """(rows, tokens) to lay out a step with prompts for.

        Where the device, not the host, takes long, and nothing is recorded, rows that decoding steps have, too.
        """
        batch, most = self.batch, self.batch.nobody
        if tokens > self.most_tokens:
            return min(padded(rows), most), tokens
        laid = min(widened(tokens, batch.prompt_tokens), batch.max_tokens)
        return next((n for n in ROWS if rows <= n <= most), most), laid

    def plan(self) -> Hashable | None:
        """Prepare for the step with prompts that lies in the batch: for what a recording is to be made, if at all."""
        batch = self.batch
        form = batch.backend.plan_recorded(batch) if batch.tokens <= self.most_tokens else None
        if form is None:
            batch.backend.plan(batch)
        return form

    def hidden(self) -> Tensor:
        """The hidden states of the step with prompts that lies in the batch, as the model gives them.

        Overwritten by the next run.
        """
        batch, form = self.batch, self.plan()
        if form is None:
            return self.mixed()
        key = Mixed(batch.rows, batch.tokens, batch.ends, form)
        if key in self._met:
            return self._replay(key, self.mixed, tried=True)
        self._met.add(key)
        return self.mixed()

    def run(self, draws: Draws | None) -> Tensor:
        """The step that lies in the batch: its tokens [R], or its logits [R, V] where `draws` is None.

        Overwritten by the next run; where `draws` is None the caller notes the tokens in `batch.last`.
        """
        return self._replay(Key(self.batch.rows, draws), lambda: self.step(draws))

    def draw(self, draws: Draws, masks: Masks) -> Tensor:
        """Tokens [R] by the logits that `run` has just given without `draws`, of what the masks allow.

        Overwritten by the next call. The host's side of the masks is read until the step is over.
        """
        if self._places is None:
            self._places = _Places(self.largest, masks.bits.shape[1], self.batch.device)
        places, rows = self._places, self.batch.rows
        places.receive(masks)
        logits_RV = self.captured[Key(rows, None)].out
        return self._replay(Masked(rows, draws), lambda: self._masked(logits_RV, draws, places))

    def _replay(self, key: Key | Masked | Mixed, step: Callable[[], Tensor], tried: bool = False) -> Tensor:
        """What `step` gives, by its recording, which is made when first asked for."""
        if key not in self.captured:
            self.captured[key] = self._capture(step, tried)
        captured = self.captured[key]
        captured.graph.replay()
        return captured.out

    def _capture(self, step: Callable[[], Tensor], tried: bool) -> Captured:
        """Record a step that was run before (`tried`), or run it once, so that kernels are loaded and memory is there.

        torch.cuda.graph would also collect Python's garbage and give the allocator's memory back to the driver,
        which takes longer than all the rest while requests are running.
        """
        batch = self.batch
        if not tried:
            batch.backend.plan(batch)
        self.stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            if not tried:
                kept = batch.last.clone()  # the first run must not draw the tokens that the replay is to read
                step()
                batch.last.copy_(kept)
                self.stream.synchronize()
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                out = step()
            finally:  # or whatever comes next would be recorded, too, or refused
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return Captured(graph, out)

    def mixed(self) -> Tensor:
        """A step with prompts that `plan` has seen, kernel by kernel: what `hidden` records."""
        self.batch.gather(self.batch.table.shape[2])
        return self.model(self.batch)

    def step(self, draws: Draws | None) -> Tensor:
        """A step of decoding rows, kernel by kernel: what `run` records."""
        batch = self.batch
        batch.derive(self.sampler.knobs)
        logits_RV = self.model.logits(self.model(batch))
        return logits_RV if draws is None else self._draw(logits_RV, draws)

    def _masked(self, logits_RV: Tensor, draws: Draws, places: "_Places") -> Tensor:
        rows = len(logits_RV)
        logits_RV = logits_RV.contiguous()
        forbid(logits_RV, places.rows[:rows], places.bits_MW[:rows])
        return self._draw(logits_RV, draws)

    def _draw(self, logits_RV: Tensor, draws: Draws) -> Tensor:
        batch = self.batch
        tokens = draw(logits_RV, None if draws.greedy else batch.settings(), draws)
        batch.last.index_copy_(0, batch.row_slots, tokens)
        return tokens


class _Places:
    """Where recordings find masks: bits_MW, and whose they are in `rows`, -1 for nobody.

    Masks travel on a stream of their own, beside the forward pass whose logits they are for.
    """

    def __init__(self, most: int, words: int, device: torch.device):
        gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if gpu else None
        with torch.cuda.stream(self._stream):  # memory that no other stream is still using
            self.bits_MW = torch.empty((most, words), dtype=torch.int32, device=device)
            self.rows = torch.empty(most, dtype=torch.int64, device=device)
        self._host = torch.full((most,), -2, dtype=torch.int64, pin_memory=gpu)  # nothing that was ever sent

    def receive(self, masks: Masks) -> None:
        """Send them; what is enqueued next waits until they are here.

        The step before, whose were here, must be over: it is, as masks depend on its tokens.
        """
        count, host = len(masks.rows), self._host.numpy()
        same = np.array_equal(host[:count], masks.rows) and (host[count:] == -1).all()
        with torch.cuda.stream(self._stream):
            if not same:
                host[:count], host[count:] = masks.rows, -1
                self.rows.copy_(self._host, non_blocking=True)
            self.bits_MW[:count].copy_(masks.bits, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
