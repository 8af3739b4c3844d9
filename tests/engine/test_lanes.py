"""Rows that decode together have their keys side by side, and get what they get one by one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from headrace.engine.batch import Batch
from headrace.engine.draft import Drafter
from headrace.engine.halves import Part
from headrace.engine.lanes import LENGTHS, QUERIES, SHARE, Lanes, Load
from headrace.engine.reach import LEAST
from headrace.engine.request import SamplingParams
from headrace.kernels import int8
from headrace.models import llama
from tests.engine.test_engine import ask
from tests.engine.test_script import compare, started

KV_HEADS, SIZE, BLOCK, LAYERS = 2, 4, 4, 3


def cache(blocks: int) -> Any:
    shape = (blocks, BLOCK, KV_HEADS, SIZE)
    made = [torch.randn(shape) for _ in range(2 * LAYERS)]
    return SimpleNamespace(k=made[:LAYERS], v=made[LAYERS:])


class Rows:
    """What lanes look at of a batch: each slot has the blocks slot, slot + 8, slot + 16 and so on."""

    def __init__(self) -> None:
        self.block_size = BLOCK
        self.table_np = (np.arange(8)[:, None] + 8 * np.arange(32))[None].astype(np.int32)
        self.stays = np.zeros(8, np.int64)

    def step(self, **rows: tuple[int, int]) -> Batch:
        """`s3=(10, 1)`: the row in slot 3 has ten keys, the last of them that of its one query."""
        self.row_slots_np = np.array([int(name[1:]) for name in rows])
        self.context_np = np.array([context for context, _ in rows.values()])
        self.starts_np = np.array([0, *(queries for _, queries in rows.values())]).cumsum()
        self.tokens = int(self.starts_np[-1])
        return cast(Batch, self)

    def cell(self, slot: int, position: int) -> int:
        return int(self.table_np[0, slot, position // BLOCK]) * BLOCK + position % BLOCK


def copied(load: Load) -> list[tuple[int, int]]:
    """(slot in the cache, place in the lanes) of what a step copies, of the first kv head."""
    return list(zip(load.source[::KV_HEADS].tolist(), load.target[::KV_HEADS].tolist(), strict=True))


def of(batch: Batch, lanes: Lanes) -> tuple[list[Load], list[int]]:
    loads, left = lanes.load(batch, np.arange(len(batch.context_np)))
    return loads, left.tolist()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    """How many an engine has; as many as before afterwards."""
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


def test_a_step_copies_what_is_new():
    rows, lanes = Rows(), Lanes(cache(256))
    (load,), left = of(rows.step(s1=(5, 1), s2=(3, 1)), lanes)
    assert not left
    assert len(copied(load)) == 8
    (load,), _ = of(rows.step(s1=(6, 1), s2=(4, 1)), lanes)
    length = KV_HEADS * LENGTHS[0]
    assert copied(load) == [(2 * rows.cell(1, 5), 5), (2 * rows.cell(2, 3), length + 3)]
    assert not load.queries.numel(), "all tokens in order"
    assert torch.isinf(load.bias[:, 0, 0, 0]).sum(-1).tolist() == [LEAST - 6, LEAST - 4]


def test_wrong_guesses_are_written_over():
    rows, lanes = Rows(), Lanes(cache(256))
    of(rows.step(s1=(5, 1), s2=(3, 1)), lanes)
    (load,), _ = of(rows.step(s1=(8, 3), s2=(4, 1)), lanes)
    assert load.queries.tolist() == [0, 1, 2, 3, 3, 3]
    assert (~torch.isinf(load.bias)).sum(-1)[:, 0, :, 0].tolist() == [[6, 7, 8], [4] * 3]
    (load,), _ = of(rows.step(s1=(7, 1), s2=(5, 1)), lanes)
    assert copied(load)[0] == (2 * rows.cell(1, 6), 6)


def test_a_slot_given_away_starts_anew_and_nothing_stays_of_who_had_the_lane():
    rows, lanes = Rows(), Lanes(cache(256))
    (load,), _ = of(rows.step(s1=(5, 1), s2=(60, 1)), lanes)
    load.keys.fill_(torch.nan)
    load.values.fill_(torch.nan)
    rows.stays[2] += 1
    (load,), _ = of(rows.step(s1=(6, 1), s2=(3, 1)), lanes)
    assert len(copied(load)) == 1 + 3
    for lanes_of in (load.keys, load.values):
        assert lanes_of[:, :KV_HEADS].isnan().all(), "who stayed keeps its lane"
        assert not lanes_of[:, KV_HEADS : 2 * KV_HEADS, :60].isnan().any()


def test_lanes_are_taken_from_the_front():
    rows, lanes = Rows(), Lanes(cache(256))
    of(rows.step(s1=(5, 1), s2=(5, 1), s3=(5, 1)), lanes)
    (load,), _ = of(rows.step(s2=(6, 1), s3=(6, 1)), lanes)
    assert load.bias.shape[0] == 2
    assert load.queries.tolist() == [1, 0], "the row in lane 1 stays there, the last one takes lane 0"
    assert len(copied(load)) == 6 + 1


def test_rows_move_on_and_shelves_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("headrace.engine.lanes.PATIENCE", 2)
    rows, lanes = Rows(), Lanes(cache(4096))
    of(rows.step(s1=(LENGTHS[0], 1), s2=(LENGTHS[0], 1)), lanes)
    for more in range(1, 4):
        (load,), _ = of(rows.step(s1=(LENGTHS[0] + more, 1), s2=(LENGTHS[0] + more, 1)), lanes)
        assert load.keys.shape[2] == LENGTHS[1]
    assert list(lanes._shelves) == [LENGTHS[1]]


def test_few_rows_with_guesses_do_not_pad_all_others():
    rows, lanes = Rows(), Lanes(cache(1024))
    step = rows.step(s1=(5, 1), s2=(9, 4), s3=(7, 1), s4=(6, 1))
    loads, left = of(step, lanes)
    assert [load.bias.shape[:3] for load in loads] == [(3, 1, 1)]
    assert left == [1]
    assert of(rows.step(s1=(5, 1), s2=(9, 4), s3=(7, 3), s4=(6, 3)), lanes)[1] == []


def test_who_has_no_lane():
    rows, lanes = Rows(), Lanes(cache(256))
    step = rows.step(s1=(5, 1), s2=(20, QUERIES + 1), s3=(100, 1), s4=(6, 2))
    loads, left = of(step, lanes)
    assert [load.bias.shape[0] for load in loads] == [2]
    assert left == [1, 2], "with many queries, and alone on its shelf"
    assert of(rows.step(s1=(5, 1), s4=(6, 1)), Lanes(cache(SHARE)))[1] == [0, 1], "too little memory"


@pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")
@pytest.mark.parametrize("guesses", [0, 3])
@pytest.mark.parametrize("least", [0.999999, 0.9995], ids=["float32", "bfloat16"])
def test_rows_side_by_side_get_what_the_layers_say(
    tmp_path: Path, guesses: int, least: float, threads: int, monkeypatch: pytest.MonkeyPatch
):
    """Rows come and go, pass the length of a shelf, take over slots; with guesses, of different numbers."""
    monkeypatch.setattr(Drafter, "draft", lambda self, tokens, most, rows: tokens[:most])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: least < 0.9999)
    begun = started(tmp_path, llama.TINY, **{"schedule.speculate": guesses, "model.threads": threads})
    script = begun.engine.runner.script
    assert script is not None
    begun.engine.runner.pace = None
    assert len(script._lanes) == threads
    seen: list[Load] = []
    load = Lanes.load

    def spy(lanes: Lanes, part: Part, rows: np.ndarray) -> tuple[list[Load], np.ndarray]:
        lanes._most = 1 << 30  # of a small cache the share would be too small
        made = load(lanes, part, rows)
        seen.extend(made[0])
        return made

    monkeypatch.setattr(Lanes, "load", spy)
    for n, (length, more) in enumerate([(58, 24), (60, 24), (7, 30), (13, 6)]):
        prompt = [3 + (n * 11 + i * 7) % 250 for i in range(length)]
        begun.engine.add(ask(n, prompt, SamplingParams(max_tokens=more)))
    compare(begun, 9, least)
    begun.engine.add(ask("late", [5, 6, 7, 5, 6, 7, 5, 6], SamplingParams(max_tokens=12)))
    compare(begun, 9 if not guesses else 3, least)
    assert {load.keys.shape[2] for load in seen} == set(LENGTHS[:2])
    assert guesses in {load.bias.shape[2] - 1 for load in seen}
    assert {load.values.dtype for load in seen} == {torch.bfloat16 if least < 0.9999 else torch.float32}


def test_guesses_are_copied_again_after_steps_without_a_lane():
    """They may have been wrong, and written over in the cache meanwhile."""
    rows, lanes = Rows(), Lanes(cache(256))
    of(rows.step(s1=(5, 1), s2=(3, 1)), lanes)
    of(rows.step(s1=(9, 4), s2=(4, 1)), lanes)
    assert of(rows.step(s1=(8, 1)), lanes)[1] == [0], "no lane for a row by itself"
    (load,), _ = of(rows.step(s1=(9, 1), s2=(5, 1)), lanes)
    assert copied(load)[:3] == [(KV_HEADS * rows.cell(1, n), n) for n in (6, 7, 8)]
