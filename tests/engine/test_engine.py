"""The loop over a real tiny model: every way to end, and answers that do not depend on who else is there."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
import torch

from headrace.base.errors import Refused, TooLong
from headrace.engine.engine import Engine
from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.start import Started, start
from headrace.nn.decoder import Decoder
from tests import tiny

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(params=["on", "off"])
def overlap(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def started(llama_folder: Path, overlap: str) -> Started:
    return start(tiny.config(llama_folder, **{"schedule.overlap": overlap}))


def ask(id: object, prompt: Iterable[int], params: SamplingParams = GREEDY, **more) -> Request:
    return Request(
        id=str(id), prompt=tuple(prompt), params=params, max_tokens=params.max_tokens or 16, **more
    )


def drain(engine: Engine, limit: int = 5000) -> list[Event]:
    """Step until nothing is left to do."""
    events = []
    while engine.busy:
        events += engine.step()
        limit -= 1
        assert limit, "no progress"
    return events


def tokens_of(events: list[Event]) -> dict[str, list[int]]:
    """What each request got; each must have ended exactly once, and with its last event."""
    found, ends = defaultdict(list), defaultdict(int)
    for event in events:
        assert not ends[event.id], "an event after the end"
        if event.token is not None:
            found[event.id].append(event.token)
        ends[event.id] += event.finish is not None
    assert set(ends.values()) <= {1}
    return dict(found)


def assert_idle(engine: Engine) -> None:
    scheduler = engine.scheduler
    assert not engine.busy
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.free == scheduler.pool.count
    assert sorted(scheduler.slots) == list(range(scheduler.max_rows))


# -- every way to end ---------------------------------------------------------------------------------------


def greedy_answer(started: Started, prompt: Iterable[int]) -> list[int]:
    started.engine.add(ask("probe", prompt))
    return tokens_of(drain(started.engine))["probe"]


def test_the_longest_answer_ends_with_length(started: Started):
    started.engine.add(ask("a", [5, 6, 7]))
    events = drain(started.engine)
    assert [event.finish for event in events] == [None] * 11 + ["length"]
    assert_idle(started.engine)


def test_a_token_that_ends_the_answer_is_told(started: Started):
    answer = greedy_answer(started, [5, 6, 7])
    at = next(i for i, token in enumerate(answer) if token not in answer[:i] and i)
    started.engine.add(ask("a", [5, 6, 7], stop_ids=frozenset({answer[at]})))
    events = drain(started.engine)
    assert [event.token for event in events] == answer[: at + 1]
    assert (events[-1].finish, events[-1].stop) == ("stop", answer[at])
    assert_idle(started.engine)


def test_cancelled_while_waiting_running_and_in_flight(started: Started):
    engine = started.engine
    for i in range(10):  # two more than there are rows
        engine.add(ask(i, [5, 6, i]))
    events = engine.step() + engine.step()
    for id in ("9", "3"):
        assert engine.cancel(id).finish == "abort"
        assert engine.cancel(id) is None
    events += drain(engine)
    assert not {event.id for event in events if event.finish} & {"3", "9"}
    assert {event.id for event in events if event.finish == "length"} == set("01245678")
    assert_idle(engine)


def test_cancel_of_the_last_request_leaves_nothing(started: Started):
    engine = started.engine
    engine.add(ask("a", [5, 6]))
    engine.step()
    assert engine.cancel("a").finish == "abort"
    assert drain(engine) == []
    assert_idle(engine)


def test_too_long_for_the_context_or_the_blocks(llama_folder: Path):
    engine = start(tiny.config(llama_folder, num_gpu_blocks_override=4, max_model_len=40)).engine
    with pytest.raises(TooLong, match="maximum context length is 40"):
        engine.add(ask("a", range(10, 39)))
    small = start(tiny.config(llama_folder, num_gpu_blocks_override=4)).engine
    assert small.plan.max_len == 64
    assert_idle(engine)


@pytest.mark.parametrize("block", [1, 7, 16])
def test_exactly_as_long_as_the_context(llama_folder: Path, overlap: str, block: int):
    """50 is no multiple of the block size: the last block of the tables is a partial one."""
    settings = {"max_model_len": 50, "block_size": block, "schedule.overlap": overlap}
    started = start(tiny.config(llama_folder, **settings))
    params = SamplingParams(temperature=0, max_tokens=None)
    for i, length in enumerate((49, 1, 33)):
        started.engine.add(started.intake.requests(str(i), [9] * length, params)[0])
    found = tokens_of(drain(started.engine))
    assert [len(found[str(i)]) for i in range(3)] == [1, 49, 17]


def test_an_id_in_use_is_refused(started: Started):
    started.engine.add(ask("a", [5]))
    with pytest.raises(Refused, match="in use"):
        started.engine.add(ask("a", [6]))
    assert len(tokens_of(drain(started.engine))["a"]) == 12
    started.engine.add(ask("a", [6]))
    assert len(tokens_of(drain(started.engine))["a"]) == 12


def test_an_interrupted_step_ends_every_request_and_leaves_a_working_engine(started, monkeypatch):
    engine = started.engine
    expected = greedy_answer(started, [5, 6, 7])
    engine.add(ask("a", [5, 6, 7]))
    engine.add(ask("b", [5, 6, 8]))
    engine.step()
    runner = engine.runner

    def fail(step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", fail)
        with pytest.raises(KeyboardInterrupt):
            drain(engine)
    assert [(event.id, event.finish) for event in engine.step()] == [("a", "error"), ("b", "error")]
    assert_idle(engine)
    assert greedy_answer(started, [5, 6, 7]) == expected


# -- whoever else is there ------------------------------------------------------------------------------------


def work(count: int, seed: int) -> list[Request]:
    """Prompts that share prefixes, with salts, priorities and lengths of all kinds."""
    random = Random(seed)
    stems = [[random.randrange(3, 259) for _ in range(40)] for _ in range(4)]
    requests = []
    for i in range(count):
        prompt = random.choice(stems)[: random.randrange(1, 41)] + [
            random.randrange(3, 259)
        ] * random.randrange(20)
        params = SamplingParams(temperature=0, max_tokens=random.randrange(1, 25))
        salt = random.choice(["", "", "", "x", "y"])
        requests.append(ask(i, prompt, params, salt=salt, priority=random.randrange(-1, 2)))
    return requests


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_many_requests_get_what_each_gets_alone(family, request, overlap):
    """Too few blocks for all, prompts cut in pieces, prefixes shared, one class pushing out another."""
    folder = request.getfixturevalue(f"{family}_folder")
    settings = {"num_gpu_blocks_override": 60, "block_size": 4, "scheduling_policy": "priority"}
    settings |= {"max_num_batched_tokens": 24, "schedule.overlap": overlap}
    engine = start(tiny.config(folder, **settings)).engine
    assert len(engine.scheduler.pool.groups) == {"llama": 1, "gemma": 3}[family]
    requests = work(160, seed=1)
    events: list[Event] = []
    for one in requests:  # they come while others run
        engine.add(one)
        if len(engine.scheduler.live) > 30:
            events += engine.step()
    events += drain(engine)
    found = tokens_of(events)
    model = tiny.decoder(folder)
    for one in requests:
        assert len(found[one.id]) == one.max_tokens
        tiny.assert_greedy(model, one.prompt, found[one.id])
    counts = engine.scheduler.counts
    assert counts.evictions > 5
    assert (
        counts.cached_tokens > {"llama": 250, "gemma": 5}[family]
    )  # two groups of three forget what is out of sight
    assert_idle(engine)


def test_a_seeded_request_draws_the_same_whatever_shares_its_batch(llama_folder: Path, overlap: str):
    params = [
        SamplingParams(
            seed=i, temperature=1.0, max_tokens=20, top_k=(0, 20)[i % 2], top_p=(1, 0.9)[i % 3 == 0]
        )
        for i in range(12)
    ]
    settings = {"num_gpu_blocks_override": 14, "block_size": 4, "max_num_batched_tokens": 16}
    settings |= {"schedule.overlap": overlap}
    engine = start(tiny.config(llama_folder, **settings)).engine
    alone = {}
    for i, each in enumerate(params):
        engine.add(ask(i, [7, 8, i + 3], each))
        alone |= tokens_of(drain(engine))
    for i, each in enumerate(params):
        engine.add(ask(i, [7, 8, i + 3], each))
    for i in range(12, 20):
        engine.add(ask(i, [7, 8, i], SamplingParams(temperature=1.3, max_tokens=9, min_p=0.1)))
    together = tokens_of(drain(engine))
    assert {id: together[id] for id in alone} == alone
    assert len({tuple(tokens) for tokens in alone.values()}) == 12
    assert engine.scheduler.counts.evictions > 0


def test_penalties_survive_eviction(llama_folder: Path, llama_decoder: Decoder, overlap: str):
    params = SamplingParams(
        temperature=0, max_tokens=24, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3
    )
    settings = {"num_gpu_blocks_override": 10, "block_size": 4, "schedule.overlap": overlap}
    engine = start(tiny.config(llama_folder, **settings)).engine
    prompts = [[7, 8, 9, i] for i in range(3, 9)]
    for i, prompt in enumerate(prompts):
        engine.add(ask(i, prompt, params))
    found = tokens_of(drain(engine))
    assert engine.scheduler.counts.evictions > 0
    for i, prompt in enumerate(prompts):
        tiny.assert_greedy(llama_decoder, prompt, found[str(i)], params)
        assert found[str(i)] != greedy_answer_of(llama_decoder, prompt, 24), "the penalties changed nothing"


def greedy_answer_of(model: Decoder, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(tiny.logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


# -- log-probabilities ---------------------------------------------------------------------------------------


def test_logprobs_are_those_of_a_whole_forward(started: Started, llama_decoder: Decoder):
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=10, logprobs=4, presence_penalty=1.0)
    started.engine.add(ask("a", [9, 8, 7], params))
    started.engine.add(ask("b", [9, 8, 7, 6], SamplingParams(max_tokens=10)))
    events = [event for event in drain(started.engine) if event.id == "a"]
    answer = [event.token for event in events]
    table = tiny.logits(llama_decoder, [9, 8, 7, *answer[:-1]])[2:].log_softmax(-1)
    for event, row in zip(events, table, strict=True):
        found, most = event.logprobs, row.topk(4)
        assert found.logprob == pytest.approx(row[event.token].item(), abs=1e-4)
        assert found.rank == 1 + int((row > row[event.token]).sum())
        assert [id for id, _ in found.top] == most.indices.tolist()
        assert [value for _, value in found.top] == pytest.approx(most.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("tokens", [5, 64])
def test_prompt_logprobs_are_those_of_a_whole_forward_each_told_once(
    llama_folder: Path, llama_decoder: Decoder, overlap: str, tokens: int
):
    """In pieces, after the prefix was cached, and through evictions."""
    settings = {"num_gpu_blocks_override": 12, "block_size": 4, "max_num_batched_tokens": tokens}
    settings |= {"schedule.overlap": overlap, "scheduling_policy": "priority"}
    engine = start(tiny.config(llama_folder, **settings)).engine
    prompt = [3 + i * 7 % 250 for i in range(30)]
    engine.add(ask("before", prompt))
    drain(engine)
    engine.add(ask("a", prompt, SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=2), priority=5))
    events = [event for _ in range(4) for event in engine.step()]
    for i in range(3):
        engine.add(ask(i, prompt[i:], SamplingParams(temperature=0, max_tokens=4)))
        events += [event for _ in range(2) for event in engine.step()]
    events += drain(engine)
    assert engine.scheduler.counts.evictions > 0
    found = [entry for event in events if event.id == "a" for entry in event.prompt_logprobs or []]
    table = tiny.logits(llama_decoder, prompt).log_softmax(-1)
    assert len(found) == 29
    for token, entry, row in zip(prompt[1:], found, table, strict=False):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [id for id, _ in entry.top] == row.topk(2).indices.tolist()
    tiny.assert_greedy(llama_decoder, prompt, tokens_of(events)["a"])


def test_a_prompt_of_one_token_has_no_logprobs_of_its_own(started: Started):
    started.engine.add(ask("a", [5], SamplingParams(max_tokens=2, prompt_logprobs=1)))
    assert not any(event.prompt_logprobs for event in drain(started.engine))


def test_prompt_logprobs_of_a_prompt_longer_than_the_rows_held_at_once(
    started: Started, llama_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.engine.runner.LOGIT_ROWS", 7)
    prompt = [3 + i * 7 % 250 for i in range(40)]
    started.engine.add(ask("a", prompt, SamplingParams(max_tokens=1, prompt_logprobs=0)))
    found = [e for event in drain(started.engine) for e in event.prompt_logprobs or []]
    table = tiny.logits(llama_decoder, prompt).log_softmax(-1)
    expected = table[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert [entry.logprob for entry in found] == pytest.approx(expected.tolist(), abs=1e-4)
