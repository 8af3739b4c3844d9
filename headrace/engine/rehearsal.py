"""Every kind of step that an engine is going to make, made once with launches noted: which kernels it will need.

Only kernels that depend on sizes are of interest, so of layers that are alike two are run, and what they compute from
weights that may not be there yet is of no use. Nothing of it is kept.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import torch
from torch import nn

from headrace.engine.graphs import Graphs, padded, widened
from headrace.engine.request import Request, SamplingParams
from headrace.engine.resolve import Plan as Resolved
from headrace.engine.scheduler import Row
from headrace.engine.sequence import Sequence
from headrace.kernels import configs
from headrace.kernels.ahead import Compilers, Job, note_of, noted, remember
from headrace.kernels.forbid import forbid
from headrace.kernels.sample import Plan, draw
from headrace.nn.decoder import Block, Decoder

log = logging.getLogger(__name__)

DRAWS = (
    Plan(greedy=True, cuts=False, floors=False),
    Plan(greedy=False, cuts=False, floors=False),
    Plan(greedy=False, cuts=True, floors=False),
    Plan(greedy=False, cuts=False, floors=True),
    Plan(greedy=False, cuts=True, floors=True),
)
FEW = 16
"""Queries of a short chunk of a long prompt: attention has other kernels for these."""

PATIENCE = 60.0
"""Seconds after which the rest is compiled when it is first launched, as all would be without this."""


class Kernels:
    """What an engine needs compiled: `missing` if that may be more than is in Triton's cache.

    `compilers` may have been started before, and are stopped if there is nothing for them to do.
    """

    missing = False

    def __init__(self, settings: dict[str, Any], plan: Resolved, compilers: Compilers | None = None):
        ours = plan.device.type == "cuda" and plan.attention == "triton" and plan.graphs
        if ours and sys.platform == "linux" and configs.gluon() and os.environ.get("TRITON_INTERPRET") != "1":
            remember()
            self._note = note_of(settings, *_facts(plan))
            self.missing = not self._note.exists()
        if self.missing:
            self._compilers = compilers or Compilers()
        elif compilers is not None:
            compilers.stop()

    def begin(self, graphs: Graphs) -> None:
        """Have them compiled in other processes, by what its steps launch. The weights may be anything."""
        try:
            self._compilers.begin(rehearse(graphs))
        except (AttributeError, TypeError, RuntimeError) as fault:  # Triton's insides are not as they were
            log.warning("kernels are compiled one by one: %s", fault)
            self._compilers.stop()

    def wait(self, notify: Callable[[str, float], None] | None = None) -> None:
        """Until they are compiled, but no longer than PATIENCE."""
        until = monotonic() + PATIENCE
        while (done := self._compilers.wait(0.2)) is None and monotonic() < until:
            if notify is not None:
                notify("compiling kernels", 1.0)
        if done:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.touch()
        else:
            self._compilers.stop()


def _facts(plan: Resolved) -> tuple[object, ...]:
    """What kernels depend on besides their sources and the model's settings, the cache's size by its order."""
    cap = configs.capability(plan.device)
    return (
        torch.__version__, cap, configs.table(cap), plan.dtype, plan.kv_dtype, plan.quantization, plan.max_len,
        plan.block, plan.kv_blocks.bit_length(), plan.tokens, plan.rows, plan.deterministic,
    )  # fmt: skip


@torch.inference_mode()
def rehearse(graphs: Graphs) -> list[Job]:
    """What has to be compiled for steps with prompts, then for decoding, greedily and by all other draws."""
    with noted() as jobs, _few_blocks(graphs.model):
        for step in _prompts(graphs):
            _prompt(graphs, step)
        for rows in sorted({min(padded(n), graphs.largest) for n in range(1, graphs.largest + 1)}):
            _decode(graphs, rows)
    return list(jobs.values())


def _prompts(graphs: Graphs) -> Iterator[list[Row]]:
    """Steps of one row, longest first, as their attention takes longest to compile: of no earlier keys and of many."""
    batch, most = graphs.batch, graphs.most_tokens
    longest = batch.table.shape[2] * batch.block_size - 1
    request = Request(id="", prompt=(0,) * longest, params=SamplingParams(temperature=0), max_tokens=1)
    seq = Sequence(request, 0)
    sizes = {FEW, batch.max_tokens - 1, batch.max_tokens, *(widened(n) for n in range(1, most + 1))}
    for tokens in sorted({min(n, longest, batch.max_tokens) for n in sizes if n > 1}, reverse=True):
        for keys in {longest, tokens}:
            yield [Row(seq, 0, 0, keys - tokens, keys, samples=True, feeds=False, new=None)]


def _prompt(graphs: Graphs, step: list[Row]) -> None:
    batch, model = graphs.batch, graphs.model
    room = graphs.room_for(len(step), sum(row.stop - row.start for row in step))
    batch.fill(step, room=room)
    if room is None:
        hidden_TE = model(batch)
    else:
        if batch.backend.plan_recorded(batch) is None:
            batch.backend.plan(batch)
        hidden_TE = graphs.mixed()
    model.logits(hidden_TE.index_select(0, batch.sample))


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
    for plan in DRAWS:
        draw(logits_RV, None if plan.greedy else batch.settings(), plan)
    nobody = torch.full((rows,), -1, dtype=torch.int64, device=batch.device)
    words = -(-logits_RV.shape[1] // 32)
    forbid(logits_RV.contiguous(), nobody, nobody.new_zeros((rows, words), dtype=torch.int32))


@contextmanager
def _few_blocks(model: Decoder) -> Iterator[None]:
    """Within, the model has no more than two blocks of every kind: the first has no residual yet."""
    every, kinds, few = model.blocks, dict[object, int](), list[Block]()
    for block in every:
        assert isinstance(block, Block)
        kind = block.attention.window, *((n, t.shape, t.dtype) for n, t in _tensors(block))
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] <= 2:
            few.append(block)
    model.blocks = nn.ModuleList(few)
    try:
        yield
    finally:
        model.blocks = every


def _tensors(block: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from block.named_parameters()
    yield from block.named_buffers()
