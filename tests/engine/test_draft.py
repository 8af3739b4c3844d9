"""Guesses: where they come from, when they are made, and that no answer shows whether any were."""

from dataclasses import replace
from pathlib import Path
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, given, settings

from headrace.api.llm import LLM
from headrace.engine.draft import CHANCES, Drafter, may_draft
from headrace.engine.engine import Engine
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.start import Started, start
from tests import tiny

# -- guesses


def test_what_followed_last_time_is_guessed_to_follow_again():
    assert Drafter().draft([1, 2, 3, 4, 5, 6, 1, 2, 3], 4, 1) == [4, 5, 6, 1]


def test_the_latest_place_counts():
    assert Drafter().draft([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 2, 1) == [8, 1]


def test_more_that_agrees_counts_before_what_is_later():
    assert Drafter().draft([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 1, 1) == [7]


def test_a_text_that_repeats_itself_is_guessed_to_go_on():
    assert Drafter().draft([9, 9, 4, 5, 4, 5, 4, 5], 5, 1) == [4, 5, 4, 5, 4]


def test_nothing_is_guessed_of_what_is_new():
    drafter, tokens = Drafter(), [1]
    for n in range(2, 50):
        assert drafter.draft(tokens, 8, 1) == []
        tokens.append(n)


def test_guesses_that_fail_are_given_up_and_taken_up_again():
    """Nobody needs to ask for them to find that out."""
    random, drafter = Random(0), Drafter()
    tokens = [random.randrange(20) for _ in range(900)]
    made = [bool(drafter.draft(tokens[:n], 8, 1)) for n in range(10, 900)]
    assert sum(made[:100]) > 10
    assert sum(made[-300:]) < 20
    tokens += tokens[100:200]
    assert len(drafter.draft(tokens, 8, 1)) == 8


def test_the_more_rows_the_surer_a_guess_must_be():
    tokens = [*range(20), *range(4)]
    assert [len(Drafter().draft(tokens, 8, rows)) for rows in (1, 4, 8)] == [6, 3, 0]
    tokens = [*range(60), *range(50)]
    counts = []
    for rows in (1, 8, 64):
        drafter = Drafter()
        drafter.draft(tokens[:64], 8, rows)
        counts.append(len(drafter.draft(tokens, 8, rows)))
    assert counts == [8, 8, 0]  # 46 right ones are not enough for that many


def test_a_drafter_is_a_function_of_the_tokens_alone():
    random = Random(1)
    tokens = [random.randrange(5) for _ in range(300)]
    every, some = Drafter(), Drafter()
    for drafter in (every, some):
        drafter.draft(tokens[:10], 8, 1)
    for n in range(11, 301):
        every.draft(tokens[:n], 8, 1)
    some.draft(tokens, 0, 4)
    assert [getattr(every, name) for name in Drafter.__slots__] == [
        getattr(some, name) for name in Drafter.__slots__
    ]
    assert every.chances != list(CHANCES)


@pytest.mark.parametrize(
    ("params", "bad", "may"),
    [
        ({}, (), True),
        ({"temperature": 1.0, "top_p": 0.5, "min_p": 0.1, "logprobs": 2, "min_tokens": 3}, ((5,),), True),
        ({"repetition_penalty": 1.1}, (), False),
        ({"presence_penalty": 0.1}, (), False),
        ({"frequency_penalty": -0.1}, (), False),
        ({}, ((5,), (6, 7)), False),
    ],
)
def test_who_may_be_guessed_at(params, bad, may):
    assert may_draft(Request(id="a", prompt=(1,), params=SamplingParams(**params), bad=bad)) is may


# -- answers

HARD = {"block_size": 4, "max_num_batched_tokens": 20, "max_num_seqs": 4}


@pytest.fixture(scope="module", params=["llama", "gemma"])
def pair(request: pytest.FixtureRequest) -> tuple[Started, Started]:
    """The same model without and with guesses; few blocks, prompts cut in pieces."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    blocks = {"llama": 40, "gemma": 84}[request.param]
    settings = {**HARD, "num_gpu_blocks_override": blocks}
    made = [start(tiny.config(folder, **settings, **{"schedule.speculate": n})) for n in (0, 7)]
    return made[0], made[1]


def answers(engine: Engine, requests: list[Request]) -> dict[str, list[Event]]:
    engine.forget()
    found: dict[str, list[Event]] = {request.id: [] for request in requests}
    waiting = list(reversed(requests))
    while waiting or engine.busy:
        if waiting:
            engine.add(waiting.pop())
        for event in engine.step():
            found[event.id].append(event)
        engine.scheduler.pool.check()
    assert engine.scheduler.pool.free == engine.scheduler.pool.count
    return found


def told(found: dict[str, list[Event]]) -> dict[str, list[tuple]]:
    """Tokens and what was said of them; how a prompt was cut shows in nothing else."""
    return {
        id: [
            (e.token, e.finish, e.stop, e.logprobs and [i for i, _ in e.logprobs.top])
            for e in events
            if e.token is not None
        ]
        for id, events in found.items()
    }


repeats = st.builds(
    lambda piece, times, end: (piece * times)[:60] + end,
    st.lists(st.integers(3, 255), min_size=1, max_size=7),
    st.integers(1, 12),
    st.lists(st.integers(3, 255), max_size=3),
)
hows = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
        "top_p": st.sampled_from([0.3, 0.9]),
        "top_k": st.integers(1, 5),
        "min_p": st.just(0.2),
        "logprobs": st.integers(0, 2),
        "prompt_logprobs": st.just(1),
        "min_tokens": st.integers(1, 9),
        "repetition_penalty": st.just(1.2),
        "frequency_penalty": st.just(0.5),
        "logit_bias": st.just({7: 3.0, 9: -4.0}),
    },
)
asks = st.tuples(
    repeats, st.integers(9, 40), hows, st.integers(0, 1), st.frozensets(st.integers(3, 255), max_size=40)
)


def build(n: int, prompt: list[int], length: int, how: dict, priority: int, stops: frozenset[int]) -> Request:
    params = SamplingParams(**{"temperature": 0.0, "seed": n, **how, "max_tokens": length})
    return Request(
        id=str(n), prompt=tuple(prompt), params=params, max_tokens=length, stop_ids=stops, priority=priority
    )


@settings(max_examples=20, phases=[Phase.generate])
@given(work=st.lists(asks, min_size=1, max_size=7))
def test_guesses_change_no_answer(pair: tuple[Started, Started], work):
    requests = [build(n, *one) for n, one in enumerate(work)]
    plain, guessed = (answers(started.engine, requests) for started in pair)
    assert told(plain) == told(guessed)


def test_guesses_are_made_and_are_often_right(pair: tuple[Started, Started]):
    """Else the test above would say nothing."""
    engine = pair[1].engine
    random = Random(2)
    requests = [
        build(n, [random.randrange(3, 9) for _ in range(30)], 60, {}, 0, frozenset()) for n in range(12)
    ]
    before = replace(engine.scheduler.counts)
    found = answers(engine, requests)
    counts = engine.scheduler.counts
    accepted = counts.accepted_tokens - before.accepted_tokens
    assert 0 < accepted < counts.drafted_tokens - before.drafted_tokens
    assert counts.drafts > before.drafts
    assert counts.evictions > before.evictions
    assert told(answers(pair[0].engine, requests)) == told(found)


def test_an_answer_goes_on_where_another_engine_had_left_it(pair: tuple[Started, Started]):
    request = build(0, [5, 6, 7] * 8, 30, {"temperature": 0.3}, 0, frozenset())
    (whole,) = answers(pair[0].engine, [request]).values()
    tokens = [event.token for event in whole]
    for done in (1, 11, 29):
        rest = Request(
            id="0", prompt=request.prompt, params=request.params, max_tokens=30, emitted=tuple(tokens[:done])
        )
        (found,) = answers(pair[1].engine, [rest]).values()
        assert [event.token for event in found] == tokens[done:]


def test_no_more_is_computed_than_may_be_answered(pair: tuple[Started, Started]):
    engine = pair[1].engine
    engine.forget()
    engine.add(build(0, [5, 6] * 10, 12, {}, 0, frozenset()))
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, *(row.stop for row in engine.latest))
    assert most <= 20 + 12 - 1


def test_a_stop_string_in_the_middle_of_a_right_guess_ends_the_answer_there(llama_folder: Path):
    texts = {}
    for n in (0, 7):
        llm = LLM(str(llama_folder), **{**tiny.SMALL, "schedule.speculate": n})
        plain = SamplingParams(temperature=0.0, max_tokens=40)
        (whole,) = llm.generate([{"prompt_token_ids": [50, 51] * 8}], plain, use_tqdm=False)
        text = whole.outputs[0].text
        stops = [text[at : at + 2] for at in range(4, len(text) - 2, 5)]
        params = [SamplingParams(temperature=0.0, max_tokens=40, stop=[stop]) for stop in stops]
        found = llm.generate([{"prompt_token_ids": [50, 51] * 8}] * len(stops), params, use_tqdm=False)
        texts[n] = [(one.outputs[0].text, one.outputs[0].finish_reason) for one in found]
        assert all(finish == "stop" for _, finish in texts[n])
    assert texts[0] == texts[7]
