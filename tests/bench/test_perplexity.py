"""Perplexity: the arithmetic, the windows, and the known numbers of the default model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.api.llm import LLM
from headrace.base.errors import Refused
from headrace.bench.perplexity import Perplexity, measure
from headrace.bench.texts import cut
from headrace.engine.request import SamplingParams


def of(*windows: list[float], ids: int = 0) -> Perplexity:
    return Perplexity("x", [[ids] * (len(w) + 1) for w in windows], [np.array(w) for w in windows])


def test_a_fair_coin_has_perplexity_two():
    coin = of([math.log(2)] * 10)
    assert (coin.tokens, len(coin.windows)) == (10, 1)
    assert coin.estimate.value == pytest.approx(2)
    assert coin.estimate.error == pytest.approx(0, abs=1e-12)


def test_another_model_is_compared_token_by_token():
    base, other = of([1.0, 5.0, 2.0]), of([1.1, 5.1, 2.1])
    assert other.over(base).value == pytest.approx(math.exp(0.1))
    assert other.over(base).error == pytest.approx(0, abs=1e-12)
    with pytest.raises(Refused, match="different tokenizers"):
        other.over(of([1.0, 5.0, 2.0], ids=1))


def test_windows(llm: LLM):
    text = "abcdefghijk"
    ids = llm.intake.text_tokenizer.encode(text)

    def of(tokens: int, windows: int | None) -> list[list[int]]:
        return cut(llm.intake.text_tokenizer, text, "x", tokens, windows, 254)

    assert of(4, 1) == [ids[:5]]
    assert of(4, None) == [ids[0:5], ids[4:9]]  # the rest is no whole window
    assert of(5, None) == [ids[0:6], ids[5:11]]
    assert of(50, 3) == [ids]
    for window in of(5, None):
        assert len(window) == 6


@pytest.mark.parametrize(
    ("text", "tokens", "param"), [("a", 4, "text"), ("", 4, "text"), ("abc", 255, "tokens")]
)
def test_what_cannot_be_measured(text: str, tokens: int, param: str, llm: LLM):
    with pytest.raises(Refused) as caught:
        measure(llm, text, "x", tokens, 1)
    assert caught.value.param == param


def test_it_is_what_generating_would_have_given(llm: LLM):
    """The prompt's probabilities are those of the tokens, had the model been made to say them."""
    ids = llm.intake.text_tokenizer.encode("water")
    expected = []
    for n in range(1, len(ids)):
        params = SamplingParams(max_tokens=1, logprobs=0, allowed_token_ids=[ids[n]])
        (output,) = llm.generate([{"prompt_token_ids": ids[:n]}], params, use_tqdm=False)
        logprobs: Any = output.outputs[0].logprobs
        expected.append(logprobs[0][ids[n]].logprob)
    found = measure(llm, "water", "x", 4)
    assert found.tokens == 4
    assert found.estimate.value == pytest.approx(math.exp(-sum(expected) / 4), rel=1e-3)


def test_windows_are_read_alone(llm: LLM):
    """Several in one batch, longer than a step, give the mean of each by itself."""
    text = "The water of the headrace reaches the wheel, and the wheel turns. " * 4
    together = measure(llm, text, "x", 100, 2)
    ids = llm.intake.text_tokenizer.encode(text)
    parts = [llm.intake.text_tokenizer.decode(ids[a : a + 101]) for a in (0, 100)]
    alone = [math.log(measure(llm, part, "x", 100, 1).estimate.value) for part in parts]
    assert (together.tokens, len(together.windows)) == (200, 2)
    assert math.log(together.estimate.value) == pytest.approx(sum(alone) / 2, rel=1e-4)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("gsm8k", 5.843), ("hamlet", 38.2), ("humaneval", 5.105)])
def test_the_default_model_has_its_known_perplexity(name: str, value: float, default_model: Path):
    from headrace.bench import texts

    llm = LLM(str(default_model), **{"memory.share": 0.1})
    assert measure(llm, texts.read(name), name).estimate.value == pytest.approx(value, rel=1e-3)
