"""Choices get the likelihood that the model gives them, and answers are what it generates."""

from pathlib import Path

import pytest
import torch

from headrace.api.llm import LLM
from headrace.base.errors import TooLong
from headrace.bench.answer import _encode, answer
from headrace.bench.tasks import Choice, Question, Task
from headrace.engine.request import SamplingParams
from tests.tiny import decoder, logits


def likelihood(at: Path, llm: LLM, context: str, choice: str) -> float:
    """By the book."""
    tokenizer = llm.intake.text_tokenizer
    before, ids = len(tokenizer.encode(context)), tokenizer.encode(context + choice)
    rows = torch.log_softmax(logits(decoder(at), ids), 1)[before - 1 : -1]
    return float(rows.gather(1, torch.tensor(ids[before:])[:, None]).sum())


def test_the_likeliest_choice_is_taken(at: Path, llm: LLM):
    choices = (" the wheel", " a", " water of the river", " x")
    sums = [likelihood(at, llm, "It turns", choice) for choice in choices]
    best = sums.index(max(sums))
    even = [value / len(choice) for value, choice in zip(sums, choices, strict=True)]
    best_even = even.index(max(even))
    items = [Choice("It turns", choices, n) for n in range(4)]
    plain, by_length = answer(llm, Task("t", items))
    assert plain.right == tuple(n == best for n in range(4))
    assert by_length.right == tuple(n == best_even for n in range(4))
    assert (plain.metric, by_length.metric) == ("accuracy", "accuracy per character")


def test_a_space_comes_between_where_there_is_none(llm: LLM):
    ids = llm.intake.text_tokenizer.encode("It turns")
    for context, choice in (("It", "turns"), ("It ", "turns"), ("It", " turns")):
        assert _encode(llm, context, choice, chat=False).ids == ids
    assert _encode(llm, "It", "turns", chat=False).context == 2
    assert _encode(llm, "It ", "turns", chat=False).context == 3


def test_in_a_chat_the_choice_follows_the_template(llm: LLM):
    found = _encode(llm, "It", "turns", chat=True)
    text = llm.intake.text_tokenizer.decode(found.ids, skip_special_tokens=False)
    assert text.endswith("assistant\nturns")
    assert found.context == len(found.ids) - len("turns")


@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_generated_without_sampling(llm: LLM, chat: bool):
    greedy = SamplingParams(temperature=0.0, max_tokens=4)
    if chat:
        (said,) = llm.chat([{"role": "user", "content": "It"}], greedy)
    else:
        (said,) = llm.generate("It", greedy)
    text = said.outputs[0].text
    items = [Question("It", text, stop=(), max_tokens=4), Question("It", text + "!", stop=(), max_tokens=4)]
    (score,) = answer(llm, Task("t", items), chat)
    assert score.right == (True, False)
    assert score.metric == "exact match"


def test_items_that_are_too_long_are_refused(llm: LLM):
    with pytest.raises(TooLong, match="t has an item of 306 tokens"):
        answer(llm, Task("t", [Choice("a" * 300, ("water", "x"), 0)]))
