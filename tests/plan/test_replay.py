"""A run is cut into the steps that a scheduler would make: every token once, within every limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.plan.anatomy import dissect
from headrace.plan.known import KNOWN
from headrace.plan.replay import Limits, cut, visible
from tests.plan.options import option

LLAMA = dissect("llama", KNOWN["llama-3.1-8b"])
GEMMA = dissect("gemma", KNOWN["gemma-3-27b"])
ROOMY = Limits(512, 8192, 900_000)


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 10), (5, 9), (7, 8), (4, 4)])
def test_visible_keys(first: int, last: int, window: int | None):
    assert visible(first, last, window) == sum(min(i + 1, window or 10**9) for i in range(first, last))


def test_one_request_by_hand():
    """100 in, 5 out: one step of the prompt, then four of one token at contexts 101 to 104."""
    run = cut(LLAMA, [(100, 5)], ROOMY)
    assert run.times.tolist() == [1, 4]
    assert run.work.tokens.tolist() == [100, 1]
    assert run.work.rows.tolist() == [1, 1]
    assert run.work.pairs[0].tolist() == [100 * 101 / 2, 0]
    assert float(np.sum(run.work.keys[0] * run.times)) == 101 + 102 + 103 + 104


requests = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=20)


@settings(max_examples=150)
@given(requests, st.integers(1, 8), st.integers(16, 200), st.integers(400, 3000))
def test_every_token_is_computed_once(asked: list[tuple[int, int]], rows: int, tokens: int, kv: int):
    run = cut(LLAMA, asked, Limits(rows, tokens, kv))
    computed = sum(i + o - 1 for i, o in asked)  # the last token is never an input
    assert float(np.sum(run.work.tokens * run.times)) == computed
    assert float(np.sum(run.work.rows * run.times)) == sum(o for _, o in asked)
    assert float(np.max(run.work.tokens)) <= tokens
    assert float(np.max(run.work.rows)) <= rows
    pairs = sum(i * (i + 1) / 2 for i, _ in asked)
    keys = sum(visible(i, i + o - 1, None) for i, o in asked)
    assert float(np.sum(run.work.pairs[0] * run.times)) == pairs
    assert float(np.sum(run.work.keys[0] * run.times)) == pytest.approx(keys)


def test_a_window_bounds_what_is_read():
    run = cut(GEMMA, [(5000, 100)], ROOMY)
    near, full = (
        n for n, _ in sorted(enumerate(k for k, _ in GEMMA.kinds), key=lambda e: e[1].window or 10**9)
    )
    assert float(np.sum(run.work.keys[near] * run.times)) == 99 * 1024
    assert float(np.sum(run.work.keys[full] * run.times)) == visible(5000, 5099, None)


def test_a_shared_prefix_is_computed_once():
    run = cut(LLAMA, [(1000, 2)] * 10, ROOMY, shared=900)
    assert float(np.sum(run.work.tokens * run.times)) == 1000 + 9 * 100 + 10
    assert float(np.max(run.work.near[0])) == 9000


def test_memory_holds_requests_back():
    wide, narrow = (cut(LLAMA, [(500, 100)] * 8, Limits(512, 8192, kv)) for kv in (10**6, 1200))
    assert float(np.max(wide.work.rows)) == 8
    assert float(np.max(narrow.work.rows)) == 2


def test_a_run_costs_what_its_steps_cost():
    setup = option().setup
    one, two = (cut(LLAMA, [(100, n)], ROOMY).seconds(setup) for n in (101, 201))
    assert 0.004 < (two - one) / 100 < 0.006
