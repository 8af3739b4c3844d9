"""Every formula on samples worked out by hand."""

import numpy as np
import pytest

from headrace.base.errors import Refused
from headrace.bench.serve.measures import (
    BATCHES,
    Spread,
    e2e,
    interval,
    is_good,
    itls,
    read_limits,
    summarize,
    tpot,
    ttft,
)
from headrace.bench.serve.sample import Sample

# Due at 1.0, sent at 1.1, a role at 1.2, tokens at 1.5, 1.7, 2.1, over at 2.2.
ONE = Sample(
    1.0, 1.1, ended=2.2, opened=1.2, first=1.5, last=2.1, chunks=[0.2, 0.4], prompt_tokens=10, output_tokens=3,
    counted=True, outcome="ok", status=200,
)  # fmt: skip
# The first chunk has two tokens, the second three.
SEVERAL = Sample(
    0.0, 0.0, ended=1.0, opened=0.4, first=0.4, last=1.0, chunks=[0.6], tokens=[2, 3], output_tokens=5, outcome="ok",
)  # fmt: skip


@pytest.mark.parametrize(
    ("whose", "first", "whole", "per_token", "gaps"),
    [
        ("headrace", 0.5, 1.1, 0.3, [0.2, 0.4]),  # from when it was due
        ("mlperf", 0.5, 1.1, 0.3, [0.2, 0.4]),
        (
            "vllm",
            0.1,
            1.0,
            (1.0 - 0.1) / 2,
            [0.2, 0.4],
        ),  # from when it was sent, to the first chunk of any kind
        ("guidellm", 0.4, 1.1, 1.0 / 3, [0.3]),  # TPOT with the first token in it, ITL a mean
    ],
)
def test_numbers_by_whose_definitions(whose, first: float, whole: float, per_token: float, gaps: list[float]):
    assert ttft(ONE, whose) == pytest.approx(first)
    assert e2e(ONE, whose) == pytest.approx(whole)
    assert tpot(ONE, whose) == pytest.approx(per_token)
    assert itls(ONE, whose) == pytest.approx(gaps)


def test_tokens_of_one_chunk_share_its_time():
    assert itls(SEVERAL) == pytest.approx([0.0, 0.2, 0.2, 0.2])
    assert itls(SEVERAL, "vllm") == [0.6]
    assert tpot(SEVERAL) == pytest.approx(0.15)
    assert sum(itls(SEVERAL)) == pytest.approx(0.6)


@pytest.mark.parametrize("definitions", ["headrace", "vllm", "guidellm", "mlperf"])
def test_what_did_not_happen_has_no_number(definitions: str):
    nothing = Sample(0.0, 0.0, ended=1.0, outcome="error")
    for measure in (ttft, tpot, e2e):
        if not (measure is e2e and definitions == "guidellm"):
            assert measure(nothing, definitions) is None  # type: ignore[arg-type]
    single = Sample(0.0, 0.0, ended=1.0, opened=0.5, first=0.5, last=0.5, output_tokens=1, outcome="ok")
    assert (tpot(single, definitions) is None) == (definitions != "guidellm")  # type: ignore[arg-type]


def test_a_summary_adds_up():
    samples = [
        ONE,
        SEVERAL,
        Sample(0.5, 0.5, ended=0.6, outcome="refused", status=429, reason="HTTP 429: full"),
        Sample(0.5, 0.5, ended=0.9, outcome="error", reason="connection: reset"),
        Sample(0.5, 0.5, ended=0.9, outcome="cancelled", output_tokens=4, first=0.7, last=0.8),
    ]
    found = summarize(samples, 2.0, {"ttft": 0.45, "tpot": 0.2})
    assert found.sent == 5
    assert found.outcomes == {"ok": 2, "refused": 1, "error": 1, "cancelled": 1}
    assert found.requests_per_second == 1.0
    assert (found.input_tokens, found.output_tokens) == (10, 12)
    assert (found.output_per_second, found.total_per_second) == (6.0, 11.0)
    assert (found.good, found.goodput, found.attained) == (1, 0.5, 0.25), (
        "only SEVERAL; the cancelled do not count"
    )
    assert found.inexact == 1
    assert found.reasons == {"HTTP 429: full": 1, "connection: reset": 1}
    assert found.lag is not None
    assert found.lag.most == pytest.approx(0.1)
    assert found.spreads["ttft"] is not None
    assert found.spreads["ttft"].n == 2
    assert found.value("ttft_mean") == pytest.approx(0.45)
    assert found.value("itl_p50") == pytest.approx(0.2)
    assert found.value("error_rate") == pytest.approx(0.2)
    assert found.value("refusal_rate") == pytest.approx(0.2)
    assert found.value("output_per_second") == 6.0


def test_a_summary_of_nothing_has_no_distributions():
    found = summarize([], 0.0)
    assert set(found.spreads.values()) == {None}
    assert found.value("ttft_p99") is None
    assert found.goodput is None
    assert found.requests_per_second == 0


def test_limits_hold_for_what_a_request_has():
    assert is_good(ONE, {"ttft": 0.5, "e2e": 1.2})
    assert not is_good(ONE, {"ttft": 0.49})
    single = Sample(0.0, 0.0, first=0.1, last=0.1, output_tokens=1)
    assert is_good(single, {"tpot": 0.001}), "one token has no time per token"


@pytest.mark.parametrize("text", ["", "ttft", "ttft=x", "itl=1", "ttft=0", "ttft=-1", "ttft=0.5,tpot"])
def test_limits_that_make_no_sense_are_refused(text: str):
    with pytest.raises(Refused, match="--goodput"):
        read_limits(text)


def test_limits_are_read():
    assert read_limits("ttft=0.5, tpot=0.05") == {"ttft": 0.5, "tpot": 0.05}


def test_percentiles_are_those_of_numpy():
    values = np.random.default_rng(1).lognormal(size=1000)
    found = Spread.of(values)
    assert found is not None
    assert found.percentiles[99][0] == pytest.approx(np.percentile(values, 99))
    assert (found.n, found.least, found.most) == (1000, values.min(), values.max())
    assert Spread.of([]) is None


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_intervals_cover_the_truth_as_often_as_they_say(part: float):
    random = np.random.default_rng(7)
    truth = -np.log(1 - part)
    covered = 0
    for _ in range(400):
        low, high = interval(np.sort(random.exponential(size=1000)), part)
        covered += (low or 0) <= truth <= (high or np.inf)
    assert 0.92 <= covered / 400 <= 0.985


def test_few_values_have_no_bound_for_their_tail():
    low, high = interval(np.arange(20.0), 0.99)
    assert low is not None
    assert high is None


def test_tokens_of_a_request_are_not_independent():
    """Requests are slow or fast as a whole: the interval must be as wide as that makes it."""
    random = np.random.default_rng(3)
    batches = [np.full(200, value) for value in random.normal(10, 2, BATCHES)]
    found = Spread.of(np.concatenate(batches), batches)
    assert found is not None
    _, low, high = found.percentiles[50]
    assert low is not None
    assert high is not None
    naive = interval(np.sort(np.concatenate(batches)), 0.5)
    assert high - low > 0.8
    assert naive[1] is not None
    assert naive[0] is not None
    assert high - low > naive[1] - naive[0]
