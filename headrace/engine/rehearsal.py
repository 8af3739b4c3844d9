"""Every kind of step that an engine is going to make, made once with launches noted: which kernels it will need.

These are compiled, where that was not done before, and loaded, while weights are still on their way.
Only kernels that depend on sizes are of interest, so of layers that are alike two are run, and what they compute from
weights that may not be there yet is of no use. Nothing of it is kept.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from itertools import chain
from time import monotonic
from typing import Any

import torch
from torch import nn

from headrace.engine.graphs import Graphs, padded, widened
from headrace.engine.request import Request, SamplingParams
from headrace.engine.resolve import Plan
from headrace.engine.scheduler import Row
from headrace.engine.sequence import Sequence
from headrace.kernels import configs
from headrace.kernels.ahead import Compilers, Job, Load, have, note_of, noted, remember, started
from headrace.kernels.forbid import forbid
from headrace.kernels.sample import Draws, draw
from headrace.nn.decoder import Block

log = logging.getLogger(__name__)

DRAWS = (
    Draws(greedy=True, cuts=False, floors=False),
    Draws(greedy=False, cuts=False, floors=False),
    Draws(greedy=False, cuts=True, floors=False),
    Draws(greedy=False, cuts=False, floors=True),
    Draws(greedy=False, cuts=True, floors=True),
)
FEW = 16
"""Queries of a short chunk of a long prompt: attention has other kernels for these."""

FINE = 512
"""Tokens of steps with prompts up to which every size may have other kernels, then every power of two."""

PATIENCE = 60.0
"""Seconds after which the rest is compiled when it is first launched, as all would be without this."""


class Kernels:
    """What an engine needs compiled and loaded before its first step: `ours` if anything."""

    def __init__(self, settings: dict[str, Any], plan: Plan):
        ours = plan.device.type == "cuda" and plan.attention == "triton" and plan.graphs
        real = sys.platform == "linux" and os.environ.get("TRITON_INTERPRET") != "1"
        self.ours = ours and real and configs.gluon()
        self._compilers, early = None, started()
        if self.ours:
            remember()
            self._note = note_of(settings, *_facts(plan))
            if self._note.exists():
                have(self._note)
            else:
                self._compilers = early or Compilers()
        if early is not None and self._compilers is None:
            early.stop()

    def prepare(
        self, graphs: Graphs, fill: Callable[[], None], notify: Callable[[str, float], None] | None = None
    ) -> None:
        """Compile what steps launch, in other processes and if that was not done, and load it; meanwhile `fill`."""
        compilers = self._compilers
        with ThreadPoolExecutor(1, "headrace-weights") as pool:
            filling = pool.submit(fill)
            try:
                loads = rehearse(graphs, compilers.compile if compilers else bool)
                if compilers is None or self._wait(compilers, filling, notify):
                    for load in loads.values():
                        load()
            except (AttributeError, TypeError, RuntimeError) as fault:  # not the Triton that we know
                log.warning("kernels are compiled and loaded one by one: %s", fault)
            finally:
                if compilers is not None:
                    compilers.stop()
            filling.result()

    def _wait(
        self, compilers: Compilers, filling: Future[None], notify: Callable[[str, float], None] | None
    ) -> bool:
        """Whether all is compiled, within PATIENCE."""
        until = monotonic() + PATIENCE
        while (done := compilers.wait(0.2)) is None and monotonic() < until:
            if notify is not None and filling.done():  # one thread at a time
                notify("compiling kernels", 1.0)
        if done:
            have(self._note)
        return bool(done)


def _facts(plan: Plan) -> tuple[object, ...]:
    """What kernels depend on besides their sources and the model's settings, the cache's size by its order."""
    cap = configs.capability(plan.device)
    return (
        torch.__version__, cap, configs.table(cap), plan.dtype, plan.kv_dtype, plan.quantization, plan.max_len,
        plan.block, plan.kv_blocks.bit_length(), plan.tokens, plan.rows, plan.deterministic,
    )  # fmt: skip


@torch.inference_mode()
def rehearse(graphs: Graphs, tell: Callable[[Job], object] = bool) -> dict[str, Load]:
    """What loads the kernels of its steps; `tell` is told what has to be compiled as soon as that is known."""
    with noted(tell) as loads, _few_blocks(graphs):
        for step in _prompts(graphs):
            _prompt(graphs, step)
        for rows in sorted({min(padded(n), graphs.largest) for n in range(1, graphs.largest + 1)}):
            _decode(graphs, rows)
    return loads


def _prompts(graphs: Graphs) -> Iterator[list[Row]]:
    """Steps of one row, longest first, as their attention takes longest to compile: of no earlier keys and of many."""
    batch, most = graphs.batch, graphs.most_tokens
    longest = batch.table.shape[2] * batch.block_size - 1
    request = Request(id="", prompt=(0,) * longest, params=SamplingParams(temperature=0), max_tokens=1)
    seq = Sequence(request, 0)
    recorded = (
        widened(n, batch.prompt_tokens)
        for n in range(1, most + 1)
        if n <= FINE or n & (n - 1) == 0 or n == most
    )
    sizes = {FEW, batch.max_tokens - 1, batch.max_tokens, *recorded}
    for tokens in sorted({min(n, longest, batch.max_tokens) for n in sizes if n > 1}, reverse=True):
        for keys in {longest, tokens}:
            yield [Row(seq, 0, 0, keys - tokens, keys, samples=True, feeds=False, new=None)]


def _prompt(graphs: Graphs, step: list[Row]) -> None:
    batch = graphs.batch
    batch.fill(step, room=graphs.room_for(len(step), sum(row.stop - row.start for row in step)), every=False)
    graphs.plan()
    graphs.model.logits(graphs.mixed().index_select(0, batch.sample))


def _decode(graphs: Graphs, rows: int) -> None:
    """A step of rows with one key each."""
    batch = graphs.batch
    request = Request(id="", prompt=(0,), params=SamplingParams(temperature=0), max_tokens=1)
    seq = Sequence(request, 0)
    batch.fill(
        [Row(seq, 0, slot, 0, 1, samples=True, feeds=True, new=None) for slot in range(rows)], pad=rows
    )
    batch.backend.plan(batch)
    logits_RV = graphs.step(None)
    for draws in DRAWS:
        draw(logits_RV, None if draws.greedy else batch.settings(), draws)
    nobody = torch.full((rows,), -1, dtype=torch.int64, device=batch.device)
    words = -(-logits_RV.shape[1] // 32)
    forbid(logits_RV.contiguous(), nobody, nobody.new_zeros((rows, words), dtype=torch.int32))


@contextmanager
def _few_blocks(graphs: Graphs) -> Iterator[None]:
    """Within, their model is one of no more than two blocks of every kind: the first has no residual yet."""
    whole, kinds, few = graphs.model, dict[object, int](), list[Block]()
    for block in whole.blocks:
        assert isinstance(block, Block)
        tensors = chain(block.named_parameters(), block.named_buffers())
        kind = block.attention.window, *((name, tensor.shape, tensor.dtype) for name, tensor in tensors)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] <= 2:
            few.append(block)
    graphs.model = copy(whole)  # the whole one's weights may just be filled
    graphs.model._modules = {**whole._modules, "blocks": nn.ModuleList(few)}
    try:
        yield
    finally:
        graphs.model = whole
