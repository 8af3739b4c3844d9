"""The last layer computes what is wanted, and that is what it computes among all tokens."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from headrace.engine.request import SamplingParams
from headrace.engine.scheduler import Outcome, Row
from headrace.engine.start import Started, start
from headrace.models.gemma import TINY as GEMMA
from headrace.models.llama import TINY as LLAMA
from headrace.models.qwen import TINY as QWEN
from tests import tiny
from tests.engine.test_engine import ask

KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA, "qwen3": QWEN | {"model_type": "qwen3"}, "gemma2": GEMMA,
    "gemma3": GEMMA | {"model_type": "gemma3_text"}, "one layer": LLAMA | {"num_hidden_layers": 1},
}  # fmt: skip


@pytest.fixture(params=KINDS)
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Started:
    folder = tiny.folder(tmp_path / "model", KINDS[request.param], seed=4)
    return start(tiny.config(folder, max_num_batched_tokens=48))


def layer_sizes(started: Started) -> list[int]:
    """From now on, of how many tokens the last feed-forward block is computed."""
    sizes: list[int] = []
    mlp = started.engine.runner.model.blocks[-1].mlp
    mlp.down_proj.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


@torch.inference_mode()
def hidden(started: Started, step: list[Row], every: bool) -> torch.Tensor:
    batch = started.engine.runner.batch
    batch.fill(step, every=every)
    return started.engine.runner.model(batch)


def test_rows_ends_are_what_they_are_among_all_tokens(started: Started):
    random, engine = Random(3), started.engine
    for i in range(9):
        prompt = [random.randrange(3, 190) for _ in range(random.choice((1, 2, 5, 30, 60)))]
        engine.add(ask(i, prompt, SamplingParams(max_tokens=random.randrange(1, 9))))
    sizes, several = layer_sizes(started), 0
    while step := engine.scheduler.plan():
        whole_TE = hidden(started, step, every=True)
        starts = engine.runner.batch.starts_np
        wanted_SE = whole_TE[engine.runner.batch.sample]
        ends_RE = hidden(started, step, every=False)
        torch.testing.assert_close(ends_RE, whole_TE[starts[1:] - 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ends_RE[engine.runner.batch.sample], wanted_SE, rtol=1e-4, atol=1e-5)
        assert sizes[-2:] == [len(whole_TE), len(step)]
        several += len(whole_TE) > len(step) > 1
        engine.scheduler.commit(step, Outcome([random.randrange(3, 190) for row in step if row.samples]))
    assert several >= 3


def test_every_token_is_computed_for_prompt_logprobs(started: Started):
    started.engine.add(ask("a", [5, 6, 7], SamplingParams(max_tokens=2)))
    started.engine.add(ask("b", [8, 6, 7, 9], SamplingParams(max_tokens=2, prompt_logprobs=0)))
    sizes = layer_sizes(started)
    started.engine.runner.run(started.engine.scheduler.plan())()
    assert sizes == [7]


def test_guesses_are_all_wanted(started: Started):
    """A row with guesses is sampled behind several of its tokens."""
    scheduler, batch = started.engine.scheduler, started.engine.runner.batch
    started.engine.add(ask("a", [5, 6, 7, 5, 6, 7, 5, 6], SamplingParams(max_tokens=9)))
    scheduler.commit(scheduler.plan(), Outcome([7]))
    (row,) = step = scheduler.plan()
    assert row.draft
    batch.fill(step, every=False)
    assert (batch.ends, batch.sample.tolist()) == (False, list(range(1 + len(row.draft))))
