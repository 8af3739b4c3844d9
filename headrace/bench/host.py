"""What a step costs on the host, per row: planning, filling the batch, committing.

No model runs: every step is answered at once with tokens of our own, so only our own work is timed.
"""

from time import thread_time
from typing import NamedTuple

import numpy as np
import torch

from headrace.bench.result import Measure
from headrace.engine.batch import Batch
from headrace.engine.blocks import BlockPool
from headrace.engine.cache import KVCache
from headrace.engine.layout import lay_out
from headrace.engine.request import Request, SamplingParams
from headrace.engine.scheduler import Outcome, Row, Scheduler


class Costs(NamedTuple):
    """Seconds of computing time spent in each part, and what for."""

    rows: int
    tokens: int
    steps: int
    plan: float
    fill: float
    commit: float

    def measures(self, name: str) -> list[Measure]:
        """Microseconds per row of a step, or per token where a row is many."""
        per = self.tokens if self.tokens > 2 * self.rows else self.rows
        unit = "us/token" if per == self.tokens else "us/row"
        parts = (("plan", self.plan), ("fill", self.fill), ("commit", self.commit))
        return [Measure(f"{name}: {part}", spent / per * 1e6, unit, "lower") for part, spent in parts]


class _NoAttention:
    def plan(self, batch: object) -> None:
        pass


def measure(rows: int, tokens_in: int, tokens_out: int, step_tokens: int) -> Costs:
    """Run `rows` requests of these lengths through scheduler and batch, with nothing behind them."""
    block, most = 16, tokens_in + tokens_out
    layout = lay_out([None])
    scheduler = Scheduler(BlockPool(rows * (most // block + 2), block, layout.groups), step_tokens, rows)
    cache = KVCache(layout, 1, block, 1, 16, torch.float32, torch.device("cpu"))
    batch = Batch(rows, step_tokens, most // block + 1, cache, _NoAttention())  # pyright: ignore[reportArgumentType]
    params = SamplingParams(max_tokens=tokens_out, ignore_eos=True)
    for n in range(rows):
        prompt = tuple((n * 7919 + i) % 30000 + 100 for i in range(tokens_in))
        scheduler.add(Request(id=str(n), prompt=prompt, params=params, max_tokens=tokens_out))
    spent, counted = np.zeros(3), np.zeros(3, dtype=int)
    while True:
        times = [thread_time()]
        step = scheduler.plan()
        times.append(thread_time())
        if not step:
            return Costs(*counted.tolist(), *spent.tolist())
        batch.fill(step)
        times.append(thread_time())
        scheduler.commit(step, _answer(step))
        times.append(thread_time())
        spent += np.diff(times)
        counted += (len(step), batch.tokens, 1)


def _answer(step: list[Row]) -> Outcome:
    return Outcome([1000 + len(row.seq.tokens) % 5000 for row in step if row.samples])
