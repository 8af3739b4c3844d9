"""One step on a real model: who samples, what comes back, what stays on the device."""

from pathlib import Path

import pytest
import torch

from headrace.engine.request import SamplingParams
from headrace.engine.scheduler import Outcome
from headrace.engine.start import Started, start
from headrace.nn.decoder import Decoder
from tests import tiny
from tests.engine.test_engine import ask

PROMPT = [3 + i * 7 % 250 for i in range(20)]


@pytest.fixture
def started(llama_folder: Path) -> Started:
    return start(tiny.config(llama_folder, max_num_batched_tokens=16))


def advance(started: Started) -> Outcome:
    engine = started.engine
    step = engine.scheduler.plan()
    outcome = engine.runner.run(step)()
    engine.scheduler.commit(step, outcome)
    return outcome


def test_a_piece_of_a_prompt_samples_nothing(started: Started):
    started.engine.add(ask("a", PROMPT))
    assert advance(started) == Outcome([], None, None)
    assert len(advance(started).tokens) == 1


def test_tokens_come_in_row_order_and_stay_where_the_next_step_finds_them(
    started: Started, llama_decoder: Decoder
):
    for i in range(3):
        started.engine.add(ask(i, [5, 6, i]))
    started.engine.add(ask("long", PROMPT))  # 7 of its 20 tokens go into the first step
    runner, scheduler = started.engine.runner, started.engine.scheduler
    runner.batch.last.fill_(-7)
    outcome = advance(started)
    expected = [int(tiny.logits(llama_decoder, [5, 6, i])[-1].argmax()) for i in range(3)]
    assert outcome.tokens == expected
    slots = [scheduler.live[str(i)].slot for i in range(3)]
    assert runner.batch.last[slots].tolist() == expected
    untouched = torch.ones(len(runner.batch.last), dtype=torch.bool)
    untouched[slots] = False
    assert (runner.batch.last[untouched] == -7).all()


def test_what_is_asked_for_by_one_row_is_given_to_it_alone(started: Started):
    started.engine.add(ask("a", [5, 6]))
    started.engine.add(ask("b", [5, 6, 7], SamplingParams(max_tokens=2, logprobs=1, prompt_logprobs=0)))
    outcome = advance(started)
    assert outcome.logprobs[0] is None
    assert len(outcome.logprobs[1].top) == 1
    assert {n: len(found) for n, found in outcome.prompt_logprobs.items()} == {1: 2}


def test_prompt_logprobs_end_where_the_prompt_does(started: Started):
    started.engine.add(ask("a", PROMPT, SamplingParams(max_tokens=4, prompt_logprobs=0)))
    counts = []
    while started.engine.busy:
        found = advance(started).prompt_logprobs
        counts.append(len(found[0]) if found else 0)
    assert counts == [16, 3, 0, 0, 0]
