"""The steady part of a run."""

import numpy as np
import pytest

from headrace.bench.serve.sample import Sample
from headrace.bench.serve.steady import inside, running, tokens_in, window


def sample(sent: float, seconds: float, tokens: int = 5) -> Sample:
    step = seconds / tokens
    return Sample(
        sent, sent, ended=sent + seconds, first=sent + step, last=sent + seconds, chunks=[step] * (tokens - 1),
        output_tokens=tokens, outcome="ok",
    )  # fmt: skip


def test_how_many_are_on_their_way():
    samples = [sample(0, 10), sample(5, 10)]
    assert running(samples, np.array([1.0, 6.0, 11.0, 16.0])).tolist() == [1, 2, 1, 0]


def test_filling_up_and_running_dry_are_left_out():
    samples = [sample(n * 0.1, 10) for n in range(600)]  # full after 10 s, the last is sent at 60 s
    found = window(samples, 70.0)
    assert found is not None
    begin, end = found
    assert begin == pytest.approx(10, abs=1.5)
    assert end == pytest.approx(59.9)
    assert len(inside(samples, begin, end)) == pytest.approx(500, abs=16)


def test_a_run_that_is_even_is_steady_from_its_beginning():
    found = window([sample(n * 0.1, 0.05) for n in range(200)], 20.0)
    assert found is not None
    assert found[0] < 3


def test_few_requests_have_no_steady_part():
    assert window([sample(n, 1) for n in range(10)], 10.0) is None
    assert window([sample(0, 1) for _ in range(50)], 1.0) is None, "all at once"


def test_tokens_are_counted_when_they_come():
    samples = [sample(0, 10, 10), sample(95, 10, 10)]
    assert tokens_in(samples, 0, 200) == 20
    assert tokens_in(samples, 2.5, 5.5) == 3
    several = Sample(0, 0, ended=2, first=1.0, last=2.0, chunks=[1.0], tokens=[4, 6], output_tokens=10)
    assert tokens_in([several], 0, 1.5) == 4
    uncounted = Sample(0, 0, ended=2, first=1.0, last=2.0, chunks=[1.0], output_tokens=20)
    assert tokens_in([uncounted], 0, 1.5) == 10, "each chunk its share"
