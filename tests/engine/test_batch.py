"""A step as buffers: every field against what the scheduler knows."""

from random import Random

import numpy as np
import pytest
import torch

from headrace.engine.batch import Batch
from headrace.engine.blocks import VOID, BlockPool, Group
from headrace.engine.cache import KVCache, bytes_per_block
from headrace.engine.layout import lay_out
from headrace.engine.policy import policy
from headrace.engine.scheduler import Outcome, Row, Scheduler
from headrace.engine.staging import Staging
from headrace.kernels.sample import Knobs
from tests.engine.device import ask

SIZE, ROWS, TOKENS, LONGEST = 4, 5, 12, 40
CPU = torch.device("cpu")


class Backend:
    """Counts how often it was asked to plan."""

    planned = 0

    def plan(self, batch: Batch) -> None:
        self.planned += 1


def batch_for(windows: list[int | None], blocks: int) -> tuple[Scheduler, Batch]:
    layout = lay_out(windows)
    cache = KVCache(layout, blocks, SIZE, 1, 2, torch.float32, CPU)
    pool = BlockPool(blocks, SIZE, layout.groups)
    scheduler = Scheduler(pool, TOKENS, ROWS, policy("priority"))
    return scheduler, Batch(ROWS, TOKENS, -(-LONGEST // SIZE), cache, Backend())  # pyright: ignore


def check(batch: Batch, step: list[Row], last: torch.Tensor) -> None:
    assert batch.rows == len(step)
    assert batch.tokens == sum(row.stop - row.start for row in step) == len(batch.ids)
    starts = np.cumsum([0, *(row.stop - row.start for row in step)])
    assert batch.starts.tolist() == batch.starts_np.tolist() == starts.tolist()
    assert batch.context.tolist() == batch.context_np.tolist() == [row.stop for row in step]
    assert batch.row_slots.tolist() == [row.slot for row in step]
    assert batch.sample.tolist() == [starts[n + 1] - 1 for n, row in enumerate(step) if row.samples]
    for n, row in enumerate(step):
        span = slice(starts[n], starts[n + 1])
        assert batch.positions[span].tolist() == list(range(row.start, row.stop))
        known = [int(last[row.slot])] if row.feeds else row.seq.tokens[row.start : row.stop]
        assert batch.ids[span].tolist() == known
        for g, group in enumerate(batch.cache.layout.groups):
            check_group(batch, row, n, span, g, group)


def check_group(batch: Batch, row: Row, n: int, span: slice, g: int, group: Group) -> None:
    blocks = row.seq.blocks[g]
    seen = range(group.first_visible(row.start), row.stop)
    for p in seen:
        assert blocks[p // SIZE] != VOID
        assert int(batch.tables[g][n, p // SIZE]) == blocks[p // SIZE]
    expected = [blocks[p // SIZE] * SIZE + p % SIZE for p in range(row.start, row.stop)]
    assert batch.slots[g][span].tolist() == expected


@pytest.mark.parametrize("windows", [[None], [None, 3], [6, None, 6]])
@pytest.mark.parametrize("depth", [0, 1])
def test_every_field_of_every_step(windows: list[int | None], depth: int):
    random = Random(0)
    scheduler, batch = batch_for(windows, 12 * len(lay_out(windows).groups))
    for i in range(30):
        prompt = [random.randrange(3)] * random.randrange(1, 25)
        scheduler.add(ask(i, prompt, random.randrange(1, 15), priority=random.randrange(2)))
    flight, steps = [], 0
    while (step := scheduler.plan()) or flight:
        if step:
            last = batch.last.clone()
            batch.fill(step)
            check(batch, step, last)
            tokens = [random.randrange(100, 200) for row in step if row.samples]
            slots = [row.slot for row in step if row.samples]
            batch.last[torch.tensor(slots, dtype=torch.int64)] = torch.tensor(tokens, dtype=torch.int64)
            flight.append((step, Outcome(tokens)))
            steps += 1
        if len(flight) > depth or not step:
            scheduler.commit(*flight.pop(0))
    assert steps > 50
    assert batch.backend.planned == steps
    assert scheduler.counts.evictions > 0


@pytest.mark.parametrize("windows", [[None], [None, 3], [6, None, 6]])
def test_a_padded_step_is_derived_from_what_is_per_row(windows: list[int | None]):
    """What a graph computes on the device equals what the host lays out; rows of nobody touch the void block only."""
    random = Random(1)
    scheduler, batch = batch_for(windows, 14 * len(lay_out(windows).groups))
    for n in range(4):
        scheduler.add(ask(n, [random.randrange(3) for _ in range(random.randint(1, 9))], 20))
    batch.table = batch.table.clone()  # as on a GPU, where only patches reach it
    knobs = Knobs(torch.rand(3, ROWS + 1), torch.randint(9, (2, ROWS + 1)))
    padded = 0
    while step := scheduler.plan():
        batch.last[:] = torch.arange(100, 101 + ROWS)
        if all(row.feeds for row in step):
            padded += 1
            batch.fill(step, ROWS)
            batch.derive(knobs)
            check_padded(batch, step)
            how, slots = batch.settings(), batch.row_slots
            assert torch.equal(torch.stack((how.scale, how.reach, how.top_p)), knobs.floats_PN[:, slots])
            assert torch.equal(torch.stack((how.top_k, how.seeds)), knobs.ints_PN[:, slots])
            assert how.positions.tolist() == batch.context.tolist()
        else:
            batch.fill(step)
            batch.table.copy_(torch.from_numpy(batch.table_np))
        scheduler.commit(step, Outcome([random.randrange(3) for row in step if row.samples]))
    assert padded > 10


def test_what_is_laid_out_ahead_shows_when_its_step_is_filled():
    """And nothing of it before; a step that was laid out and not filled leaves nothing behind."""
    scheduler, batch = batch_for([None, 3], 40)
    for i in range(4):
        scheduler.add(ask(i, [i] * (i + 1), 20))
    steps: list[list[Row]] = []
    while len(steps) < 6:
        step = scheduler.plan()
        if all(row.feeds for row in step):
            steps.append(step)
        scheduler.commit(step, Outcome([5] * len(step)))

    def shown() -> list[list[int]]:
        arrays = (batch.row_slots_np, batch.context_np, batch.sample_slots_np, batch.sample_positions_np)
        return [array.tolist() for array in arrays]

    sides = iter([batch.staging._arrays[0], {n: a.copy() for n, a in batch.staging._arrays[0].items()}] * 9)
    batch.staging.next = lambda: next(sides)  # as on a GPU, where two sides take turns
    first, second, other = steps[:3]
    batch.fill(first, ROWS)
    before = shown()
    batch.lay_out(second, ROWS)
    assert shown() == before
    batch.fill(other, ROWS)
    assert shown()[1] == [row.stop for row in other]
    batch.lay_out(second, ROWS)
    batch.fill(second, ROWS)
    assert shown()[:2] == [[row.slot for row in second], [row.stop for row in second]]
    assert shown()[3] == [row.stop for row in second]


def test_room_beyond_a_step_belongs_to_no_row():
    """A graph's step with prompts has rows without tokens, and tokens of no row that go to the void block."""
    random = Random(2)
    scheduler, batch = batch_for([None, 3], 40)
    most = TOKENS + ROWS
    for i in range(12):
        scheduler.add(ask(i, [random.randrange(3)] * random.randrange(1, 9), random.randrange(1, 6)))
    steps = 0
    while step := scheduler.plan():
        batch.last[:] = torch.arange(100, 101 + ROWS)
        total, n = sum(row.stop - row.start for row in step), len(step)
        batch.fill(step)
        plain = [batch.ids, batch.positions, batch.context, *batch.slots]
        plain = [tensor.clone() for tensor in plain]
        sample = batch.sample.tolist(), batch.sample_slots.tolist(), batch.sample_positions_np.tolist()
        batch.fill(step, room=(ROWS, most))
        batch.gather(batch.table.shape[2])
        roomy = [batch.ids, batch.positions, batch.context, *batch.slots]
        assert [len(tensor) for tensor in roomy] == [most, most, ROWS, most, most]
        for wanted, found in zip(plain, roomy, strict=True):
            assert torch.equal(found[: len(wanted)], wanted)
            assert not found[len(wanted) :].any()
        assert batch.starts.tolist()[n:] == batch.starts_np.tolist()[n:] == [total] * (ROWS + 1 - n)
        assert batch.row_slots[n:].tolist() == [batch.nobody] * (ROWS - n)
        assert all(tables.shape == (ROWS, batch.table.shape[2]) for tables in batch.tables)
        assert sample == (
            batch.sample.tolist(),
            batch.sample_slots.tolist(),
            batch.sample_positions_np.tolist(),
        )
        steps += 1
        scheduler.commit(step, Outcome([random.randrange(3) for row in step if row.samples]))
    assert steps > 5


def check_padded(batch: Batch, step: list[Row]) -> None:
    assert batch.rows == batch.tokens == ROWS
    assert batch.starts.tolist() == list(range(ROWS + 1))
    for n in range(ROWS):
        if n >= len(step):
            assert (int(batch.context[n]), int(batch.positions[n])) == (0, 0)
            assert all(int(slots[n]) // SIZE == VOID for slots in batch.slots)
            continue
        row = step[n]
        assert int(batch.context[n]) == row.stop == int(batch.positions[n]) + 1
        assert int(batch.ids[n]) == 100 + row.slot
        for g, group in enumerate(batch.cache.layout.groups):
            check_group(batch, row, n, slice(n, n + 1), g, group)


def test_a_cache_has_a_void_block_and_costs_what_it_says():
    layout = lay_out([None, 4, None, 4])
    cache = KVCache(layout, 9, 4, 2, 8, torch.bfloat16, CPU)
    assert len(cache.k) == len(cache.v) == layout.depth
    assert {tuple(t.shape) for t in (*cache.k, *cache.v)} == {(10, 4, 2, 8)}
    assert {t.dtype for t in (*cache.k, *cache.v)} == {torch.bfloat16}
    assert not any(t.any() for t in (*cache.k, *cache.v))
    total = sum(t.nbytes for t in (*cache.k, *cache.v))
    assert total == 10 * bytes_per_block(layout, 4, 2, 8, torch.bfloat16)


def test_staging_on_a_cpu_is_one_memory():
    staging = Staging({"a": (3, np.int64), "b": (5, np.int32)}, CPU)
    host = staging.next()
    host["a"][:] = [1, 2, 3]
    host["b"][:] = 7
    staging.upload()
    assert staging.device["a"].tolist() == [1, 2, 3]
    assert staging.device["b"].tolist() == [7] * 5
    assert staging.device["b"].dtype == torch.int32
