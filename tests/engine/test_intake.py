"""Every form of a prompt, and every way in which one is refused."""

from typing import Any

import pytest

from headrace.base.errors import Refused, TooLong
from headrace.engine.intake import Intake
from headrace.engine.request import SamplingParams
from headrace.text.tokenizer import Tokenizer
from headrace.text.vocabulary import Vocabulary
from tests import tiny

WORDS = Tokenizer(Vocabulary(tiny.library(), {"eos_token": tiny.SPECIALS[tiny.EOS]}))
VOCAB = 259
IDS = WORDS.encode("ab")


@pytest.fixture
def intake() -> Intake:
    return Intake(WORDS, 32, VOCAB, frozenset({tiny.EOS}))


@pytest.mark.parametrize(
    "prompt",
    [
        "ab",
        IDS,
        tuple(IDS),
        {"prompt": "ab"},
        {"prompt_token_ids": IDS},
        {"prompt": "x", "prompt_token_ids": IDS},
    ],
)
def test_forms_of_a_prompt(intake: Intake, prompt):
    assert intake.ids(prompt) == IDS


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        ([], "empty"),
        ({"prompt": ""}, "empty"),
        ({"prompt_token_ids": []}, "empty"),
        ({}, "keys \\[\\]"),
        ({"text": "ab"}, "keys \\['text'\\]"),
        (None, "NoneType"),
        (5, "int"),
        (b"ab", "bytes"),
        ({"prompt": 5}, "int"),
        ([1.5], "token 0 of the prompt is 1.5"),
        ([1, True], "token 1 of the prompt is True"),
        ([1, VOCAB], "token 1 of the prompt is 259; expected a whole number from 0 to 258"),
        ([-1], "token 0 of the prompt is -1"),
        (["ab"], "token 0 of the prompt is 'ab'"),
        ("\ud800", "surrogate"),
    ],
)
def test_refused_prompts(intake: Intake, prompt, said: str):
    with pytest.raises(Refused, match=said) as caught:
        intake.requests("a", prompt, SamplingParams())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"salt": 5}, "cache_salt"),
        ({"salt": None}, "cache_salt"),
        ({"salt": "\ud800"}, "cache_salt"),
        ({"priority": "high"}, "priority"),
        ({"priority": None}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 2**63}, "priority"),
    ],
)
def test_what_the_scheduler_could_not_take_is_refused(intake: Intake, more: dict[str, Any], param: str):
    """It would fail where all requests are planned, and end them all."""
    with pytest.raises(Refused, match="expected") as caught:
        intake.requests("a", "ab", SamplingParams(), **more)
    assert caught.value.param == param


def test_one_request_for_one_answer(intake: Intake):
    (request,) = intake.requests("a", "ab", SamplingParams(stop_token_ids=[7]), salt="s", priority=3)
    assert (request.id, request.prompt, request.max_tokens) == ("a", tuple(IDS), 16)
    assert request.stop_ids == {7, tiny.EOS}
    assert (request.salt, request.priority) == ("s", 3)


def test_ignore_eos_leaves_the_callers_own_stops(intake: Intake):
    (request,) = intake.requests("a", "ab", SamplingParams(stop_token_ids=[7], ignore_eos=True))
    assert request.stop_ids == {7}
    assert request.eos_ids == {tiny.EOS}


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [
        (5, [5, 6, 7]),
        (2**63 - 2, [2**63 - 2, 2**63 - 1, 0]),
        (None, [None] * 3),
        (-3, [-3, 2**63 - 2, 2**63 - 1]),
        (-(2**63), [-(2**63), 1, 2]),
    ],
)
def test_every_answer_is_a_request_with_a_seed_of_its_own(
    intake: Intake, seed: int | None, seeds: list[int | None]
):
    requests = intake.requests("a", "ab", SamplingParams(n=3, seed=seed))
    assert [request.id for request in requests] == ["a/0", "a/1", "a/2"]
    assert [request.params.seed for request in requests] == seeds
    assert len({request.prompt for request in requests}) == 1


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (30, 30), (31, 30), (10**6, 30), (None, 30)])
def test_an_answer_is_cut_at_the_longest_length(intake: Intake, asked: int | None, given: int):
    (request,) = intake.requests("a", "ab", SamplingParams(max_tokens=asked))
    assert request.max_tokens == given
    assert request.longest <= 32


@pytest.mark.parametrize("length", [32, 33, 500])
def test_a_prompt_that_leaves_no_room(intake: Intake, length: int):
    with pytest.raises(TooLong, match=f"maximum context length is 32 tokens; the prompt has {length}"):
        intake.requests("a", [5] * length, SamplingParams())


def test_a_prompt_that_leaves_room_for_one(intake: Intake):
    assert intake.requests("a", [5] * 31, SamplingParams())[0].max_tokens == 1


def test_bad_words_become_tokens(intake: Intake):
    (request,) = intake.requests("a", "ab", SamplingParams(bad_words=["xy", "z"]))
    assert tuple(WORDS.encode("xy")) in request.bad
    assert tuple(WORDS.encode("z")) in request.bad


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(stop_token_ids=[VOCAB]),
        SamplingParams(allowed_token_ids=[1, VOCAB]),
        SamplingParams(logit_bias={VOCAB: 1.0}),
        SamplingParams(logprobs=21),
        SamplingParams(prompt_logprobs=-1),
    ],
)
def test_params_that_do_not_fit_the_model(intake: Intake, params: SamplingParams):
    with pytest.raises(Refused):
        intake.requests("a", "ab", params)


def test_a_tokenizer_that_knows_more_tokens_than_the_model():
    """As Gemma 3's does: what the model has no number for comes neither in nor out, and nobody waits for it."""
    last = WORDS.encode("b")[0]
    intake = Intake(WORDS, 32, last, frozenset({tiny.EOS, last}))
    with pytest.raises(
        Refused, match=f"token 1 of the prompt is {last}; expected a whole number from 0 to {last - 1}"
    ):
        intake.requests("a", "ab", SamplingParams())
    (request,) = intake.requests("a", "a", SamplingParams(bad_words=["b", "ab", "a"]))
    assert request.bad == (tuple(WORDS.encode("a")),)
    assert request.eos_ids == request.stop_ids == {tiny.EOS}


def test_without_a_tokenizer_ids_still_serve():
    bare = Intake(None, 32, VOCAB, frozenset())
    assert bare.requests("a", [5, 6], SamplingParams())[0].prompt == (5, 6)
    with pytest.raises(Refused, match="no tokenizer"):
        bare.requests("a", "ab", SamplingParams())
    with pytest.raises(Refused, match="no tokenizer"):
        bare.requests("a", [5], SamplingParams(bad_words=["x"]))


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
):
    def slow(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was tokenized")

    assert WORDS.longest == max(map(len, tiny.SPECIALS))
    monkeypatch.setattr(Tokenizer, "encode", slow)
    with pytest.raises(TooLong, match="maximum context length is 32 tokens; the prompt has at least 33"):
        intake.ids("a" * (33 * WORDS.longest))
    with pytest.raises(AssertionError):
        intake.ids("a" * (32 * WORDS.longest - 1))


def test_many_ids_are_refused_before_each_is_looked_at(intake: Intake):
    with pytest.raises(TooLong):
        intake.ids([-1] * 32)
