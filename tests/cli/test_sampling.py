"""What the sampling flags come to."""

import pytest

from headrace.base.errors import Refused
from headrace.cli._sampling import MOST_TOKENS, TEMPERATURE, Sampling
from headrace.engine.request import SamplingParams


def test_nothing_given_and_nothing_recommended():
    params = Sampling().params(SamplingParams())
    assert (params.temperature, params.max_tokens, params.top_p) == (TEMPERATURE, MOST_TOKENS, 1.0)


def test_what_the_makers_recommend_holds():
    params = Sampling().params(SamplingParams(temperature=0.2, top_p=0.9))
    assert (params.temperature, params.top_p, params.max_tokens) == (0.2, 0.9, MOST_TOKENS)


def test_what_is_given_holds_above_all():
    given = Sampling(
        temperature=0.0, top_k=3, min_p=0.1, top_p=0.5, repetition_penalty=1.1, max_tokens=5, stop=["a", "b"]
    )
    params = given.params(SamplingParams(temperature=0.2, top_p=0.9))
    assert params == SamplingParams(
        temperature=0.0, top_k=3, min_p=0.1, top_p=0.5, repetition_penalty=1.1, max_tokens=5, stop=["a", "b"]
    )


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"max_tokens": -1}, {"temperature": float("nan")}, {"stop": [""]}]
)
def test_values_are_checked(wrong: dict[str, object]):
    with pytest.raises(Refused) as caught:
        Sampling(**wrong).params(SamplingParams())  # type: ignore[arg-type]
    assert caught.value.param in wrong
