"""Sampling for a batch: every parameter against a plain row-by-row reference, whoever shares the batch."""

import math
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine import sampler as module
from headrace.engine.request import Logprobs, Request, SamplingParams
from headrace.engine.sampler import Sampler, Strips

VOCAB = 24
CPU = torch.device("cpu")


def logits_of(tokens, spread=3.0):
    """A model: the next token's logits depend on the sequence so far and on nothing else."""
    seed = hash(tuple(tokens)) % 2**31
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def edited(request, tokens):
    """Plainly, the logits after masks and penalties."""
    params, start = request.params, len(request.prompt)
    output = tokens[start:]
    x = logits_of(tokens).double().tolist()
    made = Counter(output)
    for i in range(VOCAB):
        if params.allowed_token_ids is not None and i not in params.allowed_token_ids:
            x[i] = -math.inf
        if params.logit_bias:
            x[i] += params.logit_bias.get(i, 0.0)
        for *before, last in request.bad:
            if i == last and output[len(output) - len(before) :] == before and len(output) >= len(before):
                x[i] -= 1e30
        if i in request.stop_ids | request.eos_ids and len(output) < params.min_tokens:
            x[i] -= 1e30
        if i in tokens:
            r = params.repetition_penalty
            x[i] = x[i] / r if x[i] > 0 else x[i] * r
        x[i] -= params.frequency_penalty * made[i] + params.presence_penalty * (made[i] > 0)
    return x


def greedily(request, steps):
    """What a greedy request generates, alone and plainly."""
    tokens = list(request.prompt)
    for _ in range(steps):
        x = edited(request, tokens)
        tokens.append(max(range(VOCAB), key=lambda i, x=x: x[i]))
    return tokens[len(request.prompt) :]


def step(sampler, slots, sequences):
    """Sample once for these slots; sequences grow by a token each."""
    logits = torch.stack([logits_of(tokens) for tokens in sequences])
    samples = sampler.sample(logits, np.array(slots), np.array([len(tokens) for tokens in sequences]))
    for tokens, token in zip(sequences, samples.tokens.tolist(), strict=True):
        tokens.append(token)
    return samples


def alone(request, steps, *, rows=1, slot=0):
    sampler = Sampler(rows, VOCAB, CPU)
    tokens = list(request.prompt)
    sampler.admit(slot, request, tokens)
    for _ in range(steps):
        step(sampler, [slot], [tokens])
    return tokens[len(request.prompt) :]


def make(prompt=(1, 2, 3), bad=(), stop_ids=(), eos_ids=(), **params):
    return Request(
        id="r",
        prompt=tuple(prompt),
        params=SamplingParams(max_tokens=None, **params),
        stop_ids=frozenset(stop_ids),
        eos_ids=frozenset(eos_ids),
        bad=tuple(map(tuple, bad)),
    )


token_ids = st.integers(0, VOCAB - 1)


@st.composite
def requests(draw, temperature):
    few = st.lists(token_ids, min_size=1, max_size=3, unique=True)
    params = {
        "temperature": draw(temperature),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.5, 0.7])),
        "presence_penalty": draw(st.sampled_from([0.0, 0.0, 1.5, -1.0])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.0, 0.75, -0.5])),
        "logit_bias": draw(st.none() | st.dictionaries(token_ids, st.integers(-5, 5), max_size=4)),
        "allowed_token_ids": draw(st.none() | st.lists(token_ids, min_size=6, max_size=12, unique=True)),
        "min_tokens": draw(st.integers(0, 4)),
        "seed": draw(st.integers(0, 9)),
        "top_k": draw(st.sampled_from([0, 3, 10])),
        "top_p": draw(st.sampled_from([1.0, 0.8])),
        "min_p": draw(st.sampled_from([0.0, 0.1])),
    }
    bad = draw(st.lists(st.lists(token_ids, min_size=1, max_size=4).filter(lambda w: len(w) > 1), max_size=3))
    return make(draw(few), bad, draw(st.just(()) | few), draw(st.just(()) | few), **params)


def together(work, data):
    """Run requests in one sampler: rows come and go, change slots and neighbours. Returns what each generated."""
    sampler = Sampler(len(work) + 1, VOCAB, CPU)
    sequences = {n: list(request.prompt) for n, (request, _) in enumerate(work)}
    slots: dict[int, int] = {}
    while left := [n for n, (r, steps) in enumerate(work) if len(sequences[n]) < len(r.prompt) + steps]:
        chosen = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        for n in [n for n in slots if n not in left or data.draw(st.integers(0, 9)) == 0]:  # done, or evicted
            slot = slots.pop(n)
            if data.draw(st.booleans()):
                sampler.release(slot)
        for n in chosen:
            if n not in slots:
                slots[n] = data.draw(st.sampled_from(sorted(set(range(len(work) + 1)) - set(slots.values()))))
                sampler.admit(slots[n], work[n][0], sequences[n])
        step(sampler, [slots[n] for n in chosen], [sequences[n] for n in chosen])
    return [
        tokens[len(request.prompt) :] for (request, _), tokens in zip(work, sequences.values(), strict=True)
    ]


@settings(max_examples=60)
@given(st.lists(st.tuples(requests(st.just(0.0)), st.integers(1, 8)), min_size=1, max_size=4), st.data())
def test_greedy_rows_equal_the_reference_however_they_are_batched(work, data):
    assert together(work, data) == [greedily(request, steps) for request, steps in work]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(requests(st.sampled_from([0.5, 1.5])), st.integers(1, 8)), min_size=1, max_size=4),
    st.data(),
)
def test_seeded_rows_draw_what_they_draw_alone(work, data):
    assert together(work, data) == [alone(request, steps) for request, steps in work]


def test_a_seed_is_worth_the_same_in_any_slot():
    request = make(seed=5, temperature=1.5)
    assert alone(request, 12) == alone(request, 12, rows=9, slot=7)
    assert alone(request, 12) != alone(make(seed=6, temperature=1.5), 12)


def test_requests_without_a_seed_differ_unless_the_engine_has_one():
    def pair(seed):
        sampler = Sampler(2, 5000, CPU, seed)
        for slot in range(2):
            sampler.admit(slot, make(), (1, 2, 3))
        return sampler.sample(torch.zeros(2, 5000), np.arange(2), np.array([3, 3])).tokens.tolist()

    first, second = pair(3)
    assert first != second
    assert pair(3) == [first, second]
    assert pair(None) != pair(None)


@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": {4: 50.0}},
        {"allowed_token_ids": [5]},
        {"bad": [(7,)]},
        {"bad": [(7, 7)]},
        {"bad": [(6, 7, 7), (7, 7)]},
        {"repetition_penalty": 5.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"min_tokens": 3, "stop_ids": [7]},
        {"min_tokens": 3, "eos_ids": [7]},
    ],
)
def test_each_parameter_changes_the_answer(params):
    def run(**asked):
        sampler, tokens = Sampler(1, VOCAB, CPU), [1, 2, 3]
        sampler.admit(0, make(temperature=0, **asked), tokens)
        for _ in range(6):
            logits = torch.zeros(1, VOCAB)
            logits[0, 7], logits[0, 6] = 1.0, 0.5
            tokens += sampler.sample(logits, np.array([0]), np.array([len(tokens)])).tokens.tolist()
        return tokens[3:]

    assert run() == [7] * 6
    assert run(**params) != [7] * 6


def test_repetition_counts_the_prompt_and_the_others_do_not():
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 9] = 1.0, 0.9
    for params, token in (
        ({"repetition_penalty": 2.0}, 9),
        ({"presence_penalty": 2.0}, 3),
        ({"frequency_penalty": 2.0}, 3),
    ):
        sampler = Sampler(1, VOCAB, CPU)
        sampler.admit(0, make(prompt=(3, 3), temperature=0, **params), (3, 3))
        assert sampler.sample(logits.clone(), np.array([0]), np.array([2])).tokens.tolist() == [token]


def test_what_is_not_allowed_stays_out_even_when_the_rest_is_bad():
    sampler = Sampler(1, VOCAB, CPU)
    tokens = [1, 2, 5]
    sampler.admit(0, make(prompt=(1, 2), bad=[(5, 5)], allowed_token_ids=[5], temperature=1.0), tokens)
    assert sampler.sample(torch.randn(1, VOCAB), np.array([0]), np.array([3])).tokens.tolist() == [5]


@pytest.mark.parametrize("penalty", [1e-50, 1e-40, 1e40, 1e300])
def test_what_is_not_allowed_stays_out_however_strong_a_penalty(penalty: float):
    """Not even where the rest is bad."""
    sampler = Sampler(1, VOCAB, CPU)
    asked = {"bad": [(n, 3) for n in range(VOCAB)], "allowed_token_ids": [3], "temperature": 0.01}
    sampler.admit(0, make(prompt=(1, 2), repetition_penalty=penalty, **asked), (1, 2, 3))
    assert sampler.sample(torch.randn(1, VOCAB), np.array([0]), np.array([3])).tokens.tolist() == [3]


def test_bad_words_go_on_where_an_evicted_request_left_off():
    logits = torch.zeros(1, VOCAB)
    logits[0, 8], logits[0, 9] = 1.0, 0.5
    for output, token in (([6, 7], 9), ([7, 6], 8), ([7], 8), ([5, 6, 7], 9)):
        sampler = Sampler(1, VOCAB, CPU)
        tokens = [1, 2, *output]
        sampler.admit(0, make(prompt=(1, 2), bad=[(6, 7, 8)], temperature=0), tokens)
        found = sampler.sample(logits.clone(), np.array([0]), np.array([len(tokens)])).tokens
        assert found.tolist() == [token]


def test_what_the_draw_is_told():
    sampler = Sampler(3, VOCAB, CPU)
    sampler.admit(2, make(temperature=0.5, top_k=5, top_p=0.75, min_p=0.25, seed=-4), (1, 2, 3))
    sampler.admit(0, make(temperature=1.0, top_k=VOCAB + 5, seed=2**62), (1, 2, 3))
    with mock.patch.object(module, "draw", wraps=module.draw) as draw:
        sampler.sample(torch.randn(2, VOCAB), np.array([2, 0]), np.array([3, 9]))
    (_, told, draws), _ = draw.call_args
    assert told.scale.tolist() == [2.0, 1.0]
    assert told.reach.tolist() == [pytest.approx(math.log(4)), math.inf]
    assert told.top_k.tolist() == [5, 0]
    assert told.top_p.tolist() == [0.75, 1.0]
    assert told.seeds.tolist() == [-4, 2**62]
    assert told.positions.tolist() == [3, 9]
    assert draws == (False, True, True)


def test_a_greedy_batch_costs_an_argmax():
    sampler = Sampler(3, VOCAB, CPU)
    for slot, params in enumerate(({"temperature": 0}, {"top_k": 1}, {"temperature": 0, "top_p": 0.5})):
        sampler.admit(slot, make(**params), (1, 2, 3))
    logits = torch.randn(3, VOCAB)
    with mock.patch.object(module, "draw", wraps=module.draw) as draw:
        tokens = sampler.sample(logits, np.arange(3), np.full(3, 3)).tokens
    assert torch.equal(tokens, logits.argmax(-1))
    (same, chosen, draws), _ = draw.call_args
    assert same is logits
    assert chosen is None
    assert draws.greedy


def test_counts_are_kept_on_the_device_so_the_host_may_lag():
    """A token drawn in one step is penalized in the next, though nobody told the sampler what it was."""
    sampler = Sampler(2, VOCAB, CPU)
    sampler.admit(0, make(temperature=0, presence_penalty=2.0), (1, 2, 3))
    sampler.admit(1, make(temperature=0), (1, 2, 3))
    logits = torch.zeros(2, VOCAB)
    logits[:, 7], logits[:, 8] = 1.0, 0.5
    drawn = [sampler.sample(logits.clone(), np.arange(2), np.full(2, at)).tokens.tolist() for at in (3, 4)]
    assert drawn == [[7, 7], [8, 7]]


def test_logprobs_are_the_models_own_and_each_row_gets_what_it_asked_for():
    sampler = Sampler(4, VOCAB, CPU)
    asked = (
        {"logprobs": 2, "logit_bias": {4: 90.0}, "temperature": 0},
        {},
        {"logprobs": 0},
        {"logprobs": -1, "temperature": 0.3},
    )
    for slot, params in enumerate(asked):
        sampler.admit(slot, make(**params), (1, 2, 3))
    logits = torch.randn(4, VOCAB)
    logits[0, 4] = logits[0].min() - 1
    wanted = logits.double().log_softmax(-1)
    samples = sampler.sample(logits.clone(), np.arange(4), np.full(4, 3))
    biased, none, only, everything = samples.lists()  # type: ignore[misc]
    tokens = samples.tokens.tolist()
    assert tokens[0] == 4
    assert biased.rank == VOCAB
    assert none is None
    assert only.top == []
    assert [len(found.top) for found in (biased, everything)] == [2, VOCAB]
    for row, found in ((0, biased), (2, only), (3, everything)):
        assert found.logprob == pytest.approx(float(wanted[row, tokens[row]]), abs=1e-5)
        assert found.rank == 1 + int((wanted[row] > wanted[row, tokens[row]]).sum())
        for id, logprob in found.top:
            assert logprob == pytest.approx(float(wanted[row, id]), abs=1e-5)
        assert [logprob for _, logprob in found.top] == sorted((x for _, x in found.top), reverse=True)


def test_logprobs_where_every_row_wants_them_and_some_are_edited():
    for bias in (None, {4: 90.0}):
        sampler = Sampler(2, VOCAB, CPU)
        for slot in range(2):
            sampler.admit(slot, make(logprobs=1, temperature=0, logit_bias=bias), (1, 2, 3))
        logits = torch.randn(2, VOCAB)
        best = logits.argmax(-1).tolist()
        found = sampler.sample(logits.clone(), np.arange(2), np.full(2, 3)).lists()
        assert [entry.top[0][0] for entry in found or () if entry] == best


def test_a_batch_that_wants_no_logprobs_has_none():
    sampler = Sampler(1, VOCAB, CPU)
    sampler.admit(0, make(logprobs=3), (1, 2, 3))
    sampler.admit(0, make(), (1, 2, 3))
    assert sampler.sample(torch.randn(1, VOCAB), np.array([0]), np.array([3])).lists() is None


def test_prompt_logprobs():
    logits, targets = torch.randn(3, VOCAB), torch.tensor([4, 0, 9])
    found = Sampler(1, VOCAB, CPU).prompt_logprobs(logits, targets, 2)
    wanted = logits.log_softmax(-1)
    assert [entry.logprob for entry in found] == pytest.approx(wanted[range(3), targets].tolist(), abs=1e-5)
    assert all(isinstance(entry, Logprobs) and len(entry.top) == 2 for entry in found)
    assert [entry.top[0][0] for entry in found] == logits.argmax(-1).tolist()
    assert [len(entry.top) for entry in Sampler(1, VOCAB, CPU).prompt_logprobs(logits, targets, -1)] == [
        VOCAB
    ] * 3
    assert Sampler(1, VOCAB, CPU).prompt_logprobs(logits[:0], targets[:0], 2) == []


def test_log_probabilities_that_depend_on_no_other_row():
    """By themselves, in memory that begins where that of a single row does."""
    logits, targets = 5 * torch.randn(9, 1001), torch.arange(9)
    sampler = Sampler(1, 1001, CPU, deterministic=True)
    together = sampler.prompt_logprobs(logits, targets, 3)
    for n in range(9):
        assert (
            sampler.prompt_logprobs(logits[n : n + 1].clone(), targets[n : n + 1], 3) == together[n : n + 1]
        )
    usual = Sampler(1, 1001, CPU).prompt_logprobs(logits, targets, 3)
    assert [entry.logprob for entry in together] == pytest.approx(
        [entry.logprob for entry in usual], abs=1e-5
    )


def test_lanes_are_lent_grown_and_given_back():
    strips = Strips(6, (1, 2), torch.int64, -1, CPU)
    strips.lend(3, (1, 2))[:] = 7
    strips.lend(5, (2, 3))[:] = 8
    assert strips.table[strips.of[3]].tolist() == [[7, 7, -1], [-1, -1, -1]]
    strips.take_back(5)
    strips.take_back(5)
    assert strips.of.tolist() == [-1, -1, -1, int(strips.of[3]), -1, -1]
    for slot in (0, 1, 2, 4, 5):
        assert (strips.lend(slot, (1, 1)) == -1).all()
    assert len(strips.table) == 6
    assert sorted(strips.of) == list(range(6))
    assert strips.table[strips.of[3]][0].tolist() == [7, 7, -1]


def test_an_empty_batch():
    assert Sampler(1, VOCAB, CPU).sample(
        torch.zeros(0, VOCAB), np.zeros(0, int), np.zeros(0, int)
    ).tokens.shape == (0,)


def test_a_plan_holds_until_a_slot_is_given_to_another():
    sampler, slots = Sampler(2, VOCAB, CPU), np.array([0, 1])
    for slot in (0, 1):
        sampler.admit(slot, Request(id="a", prompt=(1,), params=SamplingParams(temperature=0)), [1])
    first = sampler.draws(slots)
    assert first is not None
    assert first.greedy
    assert sampler.draws(slots) is first
    sampler.admit(1, Request(id="b", prompt=(1,), params=SamplingParams(temperature=1, top_k=2)), [1])
    second = sampler.draws(slots)
    assert second is not None
    assert not second.greedy
    sampler.admit(0, Request(id="c", prompt=(1,), params=SamplingParams(presence_penalty=1)), [1])
    assert sampler.draws(slots) is None
    assert sampler.draws(slots, module.PENALTY) is not None
    sampler.release(0)
    assert sampler.draws(slots) == second
