"""No schedule changes what is generated; what is lent comes back; every request ends once."""

from random import Random
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from headrace.base.errors import TooLong, UnknownName
from headrace.engine.blocks import BlockPool, Group
from headrace.engine.policy import POLICIES, policy
from headrace.engine.request import Request, SamplingParams
from headrace.engine.scheduler import Outcome, Scheduler
from tests.engine.device import FakeDevice, alone, ask, serve

SIZE = 4
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=20).map(tuple)
groups = st.sampled_from([(None,), (None,), (5,), (None, 3), (3, None), (None, 1, 9), (2, 2), (4, 8)]).map(
    lambda windows: tuple(Group(w) for w in windows)
)
works = st.lists(
    st.tuples(prompts, st.integers(1, 12), st.sampled_from(["", "", "a", "b"]), st.integers(-1, 1)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=1200)
@given(
    work=works,
    groups=groups,
    extra=st.integers(0, 15),
    budget=st.integers(1, 16),
    rows=st.integers(1, 6),
    depth=st.integers(0, 2),
    key=st.sampled_from(sorted(POLICIES)),
    cache=st.booleans(),
    guesses=st.one_of(st.none(), st.randoms(use_true_random=False)),
    cancels=st.dictionaries(st.integers(1, 30), st.lists(st.integers(0, 7).map(str), max_size=2), max_size=3),
)
def test_no_schedule_changes_what_is_generated(
    work, groups, extra, budget, rows, depth, key, cache, guesses, cancels
):
    requests = [ask(i, prompt, n, salt, priority) for i, (prompt, n, salt, priority) in enumerate(work)]
    blocks = max(fits_alone(r, groups, budget) for r in requests) + extra
    scheduler = Scheduler(BlockPool(blocks, SIZE, groups), budget, rows, policy(key), cache)
    if guesses is not None:
        scheduler = Guessing(BlockPool(blocks, SIZE, groups), budget, rows, policy(key), cache, 5)
        scheduler.random = guesses
    tokens, ends = serve(scheduler, requests, depth, cancels)
    for request in requests:
        expected = alone(request, groups)
        assert len(ends[request.id]) == 1
        if ends[request.id] == ["abort"]:
            assert tokens[request.id] == expected[: len(tokens[request.id])]
        else:
            assert tokens[request.id] == expected
    assert not scheduler.running
    assert not scheduler.waiting
    assert not scheduler.live
    assert scheduler.pool.free == blocks
    assert sorted(scheduler.slots) == list(range(rows))


class Guessing(Scheduler):
    """Guesses that are as often right as wrong, from the first wrong one on all of them."""

    random: Random

    def add(self, request):
        super().add(request)
        seq = self.live[request.id]
        truth = [*request.prompt, *alone(request, self.pool.groups)]
        seq.drafter = SimpleNamespace(draft=lambda tokens, most, rows: self.guess(truth, tokens, most))  # pyright: ignore

    def guess(self, truth, tokens, most):
        draft = (truth[len(tokens) :] + [0] * most)[: self.random.randint(0, most)]
        if draft and self.random.random() < 0.7:
            wrong = self.random.randrange(len(draft))
            draft[wrong:] = [token + 1 for token in draft[wrong:]]
        return draft


def fits_alone(request, groups, budget):
    """The fewest blocks with which `add` accepts the request."""
    blocks = 1
    while True:
        try:
            Scheduler(BlockPool(blocks, SIZE, groups), budget, 1).add(request)
        except TooLong:
            blocks += 1
        else:
            return blocks


def test_a_prompt_that_could_never_fit_is_refused_and_leaves_nothing_behind():
    scheduler = Scheduler(BlockPool(4, SIZE), 16, 4)
    with pytest.raises(TooLong, match="need 5 KV blocks"):
        scheduler.add(ask("a", range(10), 7))
    assert not scheduler.live
    assert not scheduler.plan()


def test_no_row_is_planned_beyond_the_last_token():
    """An overlapping schedule must not compute rows whose sample nobody wants."""
    scheduler = Scheduler(BlockPool(16, SIZE), 16, 4)
    scheduler.add(ask("a", (0, 1), 3))
    device = FakeDevice(scheduler)
    steps = []
    while step := scheduler.plan():
        steps.append((step, device.run(step)))
    assert sum(row.samples for step, _ in steps for row in step) == 3
    events = [event for step in steps for event in scheduler.commit(*step)]
    assert [event.finish for event in events][-1] in ("length", "stop")


def test_a_shared_prefix_is_computed_once():
    scheduler = Scheduler(BlockPool(32, SIZE), 64, 4)
    prompt = tuple(range(17))
    first, _ = serve(scheduler, [ask("a", prompt, 2)], 0)
    scheduler.add(ask("b", prompt, 2))
    (row,) = scheduler.plan()
    assert (row.start, row.stop) == (16, 17)
    assert row.seq.cached == 16
    assert scheduler.counts.cached_tokens == 16
    assert first["a"]


def test_who_begins_alike_waits_for_what_another_one_computes():
    scheduler = Scheduler(BlockPool(64, SIZE), 16, 4)
    prompt = tuple(range(21))
    for id, salt in (("a", ""), ("b", ""), ("c", "x"), ("d", "")):
        scheduler.add(ask(id, prompt, 2, salt=salt))
    planned = []
    while scheduler.live:
        step = scheduler.plan()
        planned.append([(row.seq.request.id, row.start, row.stop) for row in step if row.start < 21])
        scheduler.commit(step, Outcome([0] * sum(row.samples for row in step)))
    assert planned[:2] == [[("a", 0, 16)], [("a", 16, 21), ("c", 0, 11)]]
    assert planned[2] == [("c", 11, 21), ("b", 20, 21), ("d", 20, 21)]


def test_who_begins_alike_waits_for_a_step_in_flight():
    scheduler = Scheduler(BlockPool(64, SIZE), 64, 4)
    prompt = tuple(range(21))
    for id in "ab":
        scheduler.add(ask(id, prompt, 8))
    first, second = scheduler.plan(), scheduler.plan()  # the second before the first has come back
    assert [[row.seq.request.id for row in step] for step in (first, second)] == [["a"], ["a"]]
    scheduler.commit(first, Outcome([0]))
    third = scheduler.plan()
    assert [(row.seq.request.id, row.start) for row in third if row.start < 21] == [("b", 20)]


def test_salts_keep_prefixes_apart():
    scheduler = Scheduler(BlockPool(32, SIZE), 64, 4)
    prompt = tuple(range(17))
    serve(scheduler, [ask("a", prompt, 2, salt="x")], 0)
    scheduler.add(ask("b", prompt, 2, salt="y"))
    scheduler.add(ask("c", prompt, 2))
    assert [row.start for row in scheduler.plan()] == [0, 0]


def test_a_window_forgets_its_blocks_and_still_shares_what_is_visible():
    groups = (Group(None), Group(4))
    scheduler = Scheduler(BlockPool(64, SIZE, groups), 64, 4)
    prompt = tuple(i % 5 for i in range(33))
    serve(scheduler, [ask("a", prompt, 2)], 0)
    scheduler.add(ask("b", prompt, 2))
    (row,) = scheduler.plan()
    assert row.start == 32
    full, windowed = row.new.ids
    assert 0 not in full
    assert windowed[:7] == [0] * 7
    assert 0 not in windowed[7:]


def test_a_long_windowed_sequence_holds_only_its_window():
    scheduler = Scheduler(BlockPool(8, SIZE, (Group(8),)), 4, 1)
    tokens, ends = serve(scheduler, [ask("a", (1, 2) * 40, 12)], 1)
    assert ends["a"]
    assert tokens["a"] == alone(ask("a", (1, 2) * 40, 12), (Group(8),))


def test_a_lower_class_gives_way_to_a_higher_one():
    scheduler = Scheduler(BlockPool(64, SIZE), 64, 2, policy("priority"))
    for i in range(2):
        scheduler.add(ask(f"low{i}", (1, 2, 3), 9, priority=5))
    scheduler.commit(step := scheduler.plan(), Outcome([1] * len(step)))
    scheduler.add(ask("high", (1, 2, 3), 9, priority=0))
    assert {row.seq.request.id for row in scheduler.plan()} == {"low0", "high"}
    assert scheduler.counts.evictions == 1


def test_what_a_victim_was_to_compute_goes_to_who_pushed_it_out():
    scheduler = Scheduler(BlockPool(64, SIZE), 4, 2, policy("priority"))
    for i in range(2):
        scheduler.add(ask(f"low{i}", (1, 2), 9, priority=5))
    scheduler.commit(step := scheduler.plan(), Outcome([1] * len(step)))
    scheduler.add(ask("high", (1, 2, 3), 9, priority=0))
    assert {row.seq.request.id: row.stop - row.start for row in scheduler.plan()} == {"low0": 1, "high": 3}


def test_a_step_planned_before_an_eviction_confirms_nothing_after_it():
    scheduler = Scheduler(BlockPool(12, SIZE), 24, 2, policy("priority"))
    scheduler.add(ask("low", range(40), 1, priority=5))
    first = scheduler.plan()
    scheduler.add(ask("high", range(100, 140), 1, priority=0))
    assert [row.seq.request.id for row in scheduler.plan()] == ["high"]
    scheduler.cancel("high")
    (row,) = scheduler.plan()
    assert (row.seq.request.id, row.start, row.stop) == ("low", 0, 24)
    scheduler.commit(first, Outcome([]))
    assert row.seq.computed == 0
    assert not scheduler.pool.named[0]


def test_arrival_order_is_kept_when_memory_is_short():
    scheduler = Scheduler(BlockPool(4, SIZE), 64, 8)
    for i in range(4):
        scheduler.add(ask(i, (i,) * 7, 5))
    assert [row.seq.request.id for row in scheduler.plan()] == ["0", "1"]


def test_cancel_of_a_stranger_is_nothing():
    scheduler = Scheduler(BlockPool(4, SIZE), 64, 8)
    assert scheduler.cancel("nobody") is None


def test_prompt_logprobs_need_the_whole_prompt_computed():
    scheduler = Scheduler(BlockPool(32, SIZE), 64, 4)
    prompt = tuple(range(17))
    serve(scheduler, [ask("a", prompt, 2)], 0)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    scheduler.add(Request(id="b", prompt=prompt, params=params, max_tokens=1, stop_ids=frozenset()))
    (row,) = step = scheduler.plan()
    assert row.start == 0
    events = scheduler.commit(step, Outcome([3], prompt_logprobs={0: ["asked for"]}))
    assert [e.prompt_logprobs for e in events] == [["asked for"], None]


def test_unknown_policy_lists_the_known_ones():
    with pytest.raises(UnknownName, match="arrival, priority"):
        policy("fair")


def test_prompts_are_not_cut_for_rows_that_decode():
    """Two steps hold four prompts of half a step each, and the rows of the first two beside the others."""
    scheduler = Scheduler(BlockPool(64, 4), max_tokens=16, max_rows=4)
    for i in range(4):
        scheduler.add(ask(i, [10 * i + n for n in range(8)], 3))
    steps = []
    while step := scheduler.plan():
        steps.append([row.stop - row.start for row in step])
        scheduler.commit(step, Outcome([7] * sum(row.samples for row in step), None))
    assert steps[:3] == [[8, 8], [1, 1, 8, 8], [1, 1, 1, 1]]


def test_a_row_that_gives_way_gives_no_tokens_back_that_it_did_not_cost():
    scheduler = Scheduler(BlockPool(64, 4), 4, 2, policy("priority"))
    for i in range(2):
        scheduler.add(ask(f"low{i}", (1, 2), 9, priority=5))
    scheduler.commit(scheduler.plan(), Outcome([7, 7], None))
    scheduler.add(ask("high", range(8), 9, priority=0))
    step = scheduler.plan()
    assert {row.seq.request.id: row.stop - row.start for row in step} == {"low0": 1, "high": 4}
