"""Standard errors: against arithmetic, and against what repeated draws really do."""

import math

import numpy as np
import pytest

from headrace.bench.estimate import FEWEST, STRETCH, Estimate, blocks, exponential, mean, quantile


def text(random: np.random.Generator, windows: int, tokens: int, shared: float) -> list[np.ndarray]:
    """Tokens of a window share a part of what they are."""
    return [random.normal(size=tokens) + shared * random.normal() for _ in range(windows)]


def test_independent_blocks_of_one_token_give_the_plain_error():
    values = [np.array([float(n)]) for n in (1, 2, 4, 9)]
    found = mean([values])
    assert found.value == 4
    assert found.error == pytest.approx(np.std([1, 2, 4, 9], ddof=1) / 2)


def test_blocks_weigh_by_their_tokens():
    assert mean([[np.array([1.0, 1, 1]), np.array([5.0])]]).value == 2


def test_one_block_has_no_error():
    assert math.isnan(mean([[np.ones(5)]]).error)
    assert math.isnan(quantile([[np.ones(5)]], 0.5).error)


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_error_is_how_much_means_really_differ(shared: float):
    random = np.random.default_rng(1)
    found = [mean([text(random, 20, 30, shared)]) for _ in range(400)]
    real = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(real, rel=0.1)


def test_texts_are_strata():
    """How far apart texts are adds nothing to the error: they are the ones that are meant."""
    random = np.random.default_rng(2)
    one, other = (text(random, 10, 20, 0.5) for _ in range(2))
    far = [window + 100 for window in other]
    assert mean([one, far]).error == pytest.approx(mean([one, other]).error)
    assert mean([one, far]).value == pytest.approx(mean([one, other]).value + 50)
    assert quantile([one, far], 0.75).error < 1


def test_the_quantile_is_one_of_the_values_and_its_error_real():
    random = np.random.default_rng(3)
    found = [quantile([text(random, 30, 20, 0.7)], 0.9) for _ in range(60)]
    real = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(real, rel=0.3)
    plain = quantile([[np.arange(50.0), np.arange(50.0, 100.0)]], 0.99)
    assert plain.value == 98
    assert plain == quantile([[np.arange(50.0), np.arange(50.0, 100.0)]], 0.99)


def test_the_exponential_carries_the_error():
    values = [[np.array([1.0]), np.array([2.0])]]
    inner = mean(values)
    assert exponential(values) == Estimate(math.exp(inner.value), math.exp(inner.value) * inner.error)


def test_few_windows_are_cut():
    window = np.arange(1000.0)
    assert len(blocks([window] * FEWEST)) == FEWEST
    assert [len(block) for block in blocks([window])] == [STRETCH] * 15 + [40]
    short = blocks([window[:20]])
    assert len(short) >= FEWEST
    assert np.array_equal(np.concatenate(short), window[:20])
    assert [len(block) for block in blocks([window[:1]])] == [1]


def test_it_reads_well():
    assert str(Estimate(0.123456, 0.0012)) == "0.1235 ± 0.0012"
