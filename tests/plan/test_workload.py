"""What a workload and a limit may be, and what is said of what they may not."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.base.errors import Refused
from headrace.plan.workload import KEYS, Limit, Workload, limits, workload


@given(st.integers(2, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_read_back(tokens_in: int, tokens_out: int, concurrency: int):
    said = f"in={tokens_in}, out={tokens_out},concurrency={concurrency},prefix=1"
    assert workload(said) == Workload(tokens_in, tokens_out, concurrency, 1)


def test_what_is_left_out_is_the_default():
    assert workload("out=5") == Workload(tokens_out=5)
    assert workload("") == Workload()


@pytest.mark.parametrize(
    "text",
    [
        "in=0",
        "in=-5",
        "out=x",
        "concurrency=0",
        "in=1e3",
        "in",
        "in=",
        "in=1,in=2",
        "in=5,prefix=5",
        f"in={10**10}",
    ],
)
def test_refused(text: str):
    with pytest.raises(Refused) as fault:
        workload(text)
    assert "workload" in fault.value.message


@given(st.text(max_size=40))
def test_no_text_makes_it_fall_over(text: str):
    for read in (workload, limits):
        with suppress(Refused):
            assert read(text)


def test_limits():
    assert limits("ttft<0.5, tpot<=0.05") == [Limit("ttft", 0.5), Limit("tpot", 0.05)]


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft<", "ttft<0", "ttft<-1", "ttft<nan", "ttft<inf", "ttfp<1", "ttft=1"]
)
def test_limits_refused(text: str):
    with pytest.raises(Refused):
        limits(text)


def test_every_key_is_a_field():
    assert set(KEYS.values()) <= set(Workload._fields)
