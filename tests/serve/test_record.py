"""How long the parts of a request took."""

import pytest

from headrace.serve.record import Spans
from tests.serve.watched import over


def test_the_parts_of_a_request():
    spans = over().spans
    assert spans == Spans(queue=0.25, prefill=0.25, ttft=0.5, decode=1.0, tpot=0.1, total=2.0)
    assert spans.inference == 1.25


def test_several_answers_share_the_time_of_their_tokens():
    assert over(n=2, prompts=2, generated=44).spans.tpot == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"scheduled": None, "first": None, "last": None}, {"queue", "prefill", "ttft", "decode", "tpot"}),
        ({"first": None, "last": None}, {"prefill", "ttft", "decode", "tpot"}),
        ({"generated": 1}, {"tpot"}),
    ],
)
def test_parts_that_were_not_reached_are_unknown(changes: dict[str, float | None], unknown: set[str]):
    spans = over(**changes).spans
    assert {name for name, value in spans._asdict().items() if value is None} == unknown
    assert (spans.inference is None) == bool(unknown & {"prefill", "decode"})


def test_clocks_that_cross_do_not_give_negative_times():
    assert over(scheduled=99.9999).spans.queue == 0
