"""A CPU's step in one call says what the layers say that it stands in for, whatever rows a step has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.engine import script
from headrace.engine.pace import Pace
from headrace.engine.program import BLOCK
from headrace.engine.reach import SHARED, Keys, bunches
from headrace.engine.request import SamplingParams
from headrace.engine.script import unfit
from headrace.engine.start import Started, start
from headrace.kernels import int8
from headrace.models import gemma, llama, qwen
from tests import tiny
from tests.engine.test_engine import ask

pytestmark = pytest.mark.skipif(int8.missing() is not None, reason="no 8-bit products on this processor")

QWEN2 = {**qwen.TINY, "use_sliding_window": False}
QWEN3 = {**QWEN2, "model_type": "qwen3"}
LONG = [3 + i * 7 % 250 for i in range(BLOCK + 40)]


def started(at: Path, config: dict[str, Any], **more: Any) -> Started:
    folder = tiny.folder(at / "model", config, max_position_embeddings=256)
    more = {
        "quantization": "int8",
        "block_size": 16,
        "max_num_batched_tokens": BLOCK + 16,
        "schedule.speculate": 0,
        **more,
    }
    return start(tiny.config(folder, **more))


@pytest.fixture(params=[0.999999, 0.9995], ids=["float32", "bfloat16"], autouse=True)
def least(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far steps agree with the layers by what they multiply many queries in."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param < 0.9999)
    return request.param


def compare(started: Started, steps: int, least: float) -> list[int]:
    """Run steps by the script, each by the layers as well; how many rows each had."""
    runner, scheduler = started.engine.runner, started.engine.scheduler
    assert runner.script is not None, unfit(runner.model, started.plan)
    rows = []
    for _ in range(steps):
        step = scheduler.plan()
        with torch.inference_mode():
            assert runner._admit(step) is None
            runner.batch.fill(step)
            found, expected = runner.script(), runner.model(runner.batch)
            sample = runner.batch.sample
            asked, known = runner.script(sample)[sample], found[sample]
        alike = torch.nn.functional.cosine_similarity(found, expected)
        assert alike.min() > 0.997, alike  # a number between two steps of 8 bits may go to the other one
        assert alike.median() > (least if len(alike) > 2 else min(least, 0.9999))
        alike = torch.nn.functional.cosine_similarity(asked, known)
        assert torch.equal(asked, known) if runner.model.deterministic else bool((alike > 0.997).all())
        scheduler.commit(step, runner.draw(runner._to_logits(step))())
        rows.append(len(step))
    return rows


@pytest.mark.parametrize("fixed", [False, True], ids=["fast", "fixed"])
@pytest.mark.parametrize("config", [llama.TINY, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_steps_of_every_kind(tmp_path: Path, config: dict[str, Any], least: float, fixed: bool):
    """A long prompt in pieces, rows that decode beside it, rows alone."""
    begun = started(tmp_path, config, deterministic=fixed)
    if fixed:  # products of other shapes: more numbers between two steps go to the other one
        least = min(least, 0.9999)
    begun.engine.add(ask("a", LONG, SamplingParams(max_tokens=9)))
    assert compare(begun, 1, least) == [1]
    begun.engine.add(ask("b", [5, 6, 7], SamplingParams(max_tokens=3)))
    assert compare(begun, 9, least) == [2, 2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("more", "queries", "left"), [([], 4, 1), ([7, 1, 9, 9, 2], 3 * 6, 2), ([*range(40, 51)], 3 * 12, 2)]
)
def test_rows_that_begin_alike(tmp_path: Path, least: float, more: list[int], queries: int, left: int):
    begun = started(tmp_path, llama.TINY)
    begun.engine.add(ask("first", [*LONG[:64], 4], SamplingParams(max_tokens=6)))
    compare(begun, 1, least)  # so that the others find its blocks
    begun.engine.add(ask("other", [8, 8, 8, 8], SamplingParams(max_tokens=6)))
    for n in range(3):
        own = [9 + n, *more[: len(more) - n // 2]]
        begun.engine.add(ask(n, [*LONG[:64], *own], SamplingParams(max_tokens=6)))
    assert compare(begun, 1, least) == [5]
    batch = begun.engine.runner.batch
    where = batch.starts_np, batch.context_np, batch.tables[0].numpy()
    found, others = bunches(*where, 16, 2, batch.cache.k[0].shape[3])
    assert [len(bunch.queries) for bunch in found] == [queries]
    assert len(others) == left
    assert found[0].common.last - found[0].common.first == 64 >= SHARED
    assert compare(begun, 2, least) == [5, 5]


def test_steps_have_the_threads_that_are_found_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(Pace, "begin", lambda self, tokens: seen.append(tokens))
    monkeypatch.setattr(Pace, "end", lambda self: seen.append("end"))
    try:
        begun = started(tmp_path, llama.TINY, **{"model.threads": 2})
        begun.engine.add(ask("a", [5, 6, 7], SamplingParams(max_tokens=2)))
        while begun.engine.busy:
            begun.engine.step()
    finally:
        torch.set_num_threads(before)
    assert seen == [3, "end", 1, "end"]


def test_keys_that_do_not_lie_in_a_row():
    blocks = np.array([4, 2, 0], np.int32)
    assert Keys.of(blocks, 20, 16).slots.tolist() == [*range(64, 80), *range(32, 36)]
    assert Keys.of(np.array([3, 0, 0], np.int32), 5, 16)[1:] == (48, 53)
    assert Keys.of(np.array([7, 8, 9], np.int32), 33, 16)[1:] == (112, 145)


def test_what_it_cannot_say_is_left_to_the_layers(tmp_path: Path):
    for name, config, more in (
        ("gemma", gemma.TINY, {}),
        ("float", llama.TINY, {"quantization": "none"}),
        ("windows", qwen.TINY, {}),
    ):
        begun = started(tmp_path / name, config, **more)
        runner = begun.engine.runner
        assert runner.script is None, name
        assert unfit(runner.model, begun.plan) is not None


@pytest.mark.parametrize("alike", [True, False])
def test_deterministic_steps_are_left_to_the_layers_where_the_library_adds_up_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
):
    monkeypatch.setattr(script, "keeps", lambda *given: alike)
    begun = started(tmp_path, llama.TINY, deterministic=True)
    runner = begun.engine.runner
    assert (runner.script is not None) == alike
    assert unfit(runner.model, begun.plan) == (None if alike else "gives a row other bits in other company")
