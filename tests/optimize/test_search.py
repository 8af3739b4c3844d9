"""The search is the best of all picks on small instances, and its frontier falls."""

from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.optimize.search import Option, Pick, best, hull, sweep

NUMBERS = st.integers(0, 64).map(lambda n: n / 8)  # so that sums are exact
GROUPS = st.lists(
    st.lists(st.builds(Option, st.just("x"), NUMBERS, NUMBERS), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def every(groups: list[list[Option]]) -> list[Pick]:
    return [Pick.of(groups, chosen) for chosen in product(*(range(len(group)) for group in groups))]


@settings(max_examples=200)
@given(GROUPS, st.integers(0, 320).map(lambda n: n / 8))
def test_best_is_the_best_of_all(groups: list[list[Option]], limit: float) -> None:
    losses = [pick.loss for pick in every(groups) if pick.cost <= limit]
    found = best(groups, limit)
    assert (found is None) == (not losses)
    if found is not None:
        assert found.cost <= limit * (1 + 1e-9)
        assert found.loss == min(losses)


@settings(max_examples=100)
@given(GROUPS)
def test_frontier_falls_and_no_pick_is_below_it(groups: list[list[Option]]) -> None:
    points, picks = sweep(groups), every(groups)
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in pairwise(points))
    for point in points:
        assert point.loss == min(pick.loss for pick in picks if pick.cost <= point.cost)
    assert points[0].cost == min(pick.cost for pick in picks)
    assert points[-1].loss == min(pick.loss for pick in picks)


def test_between_two_points_of_the_hull() -> None:
    """What a sweep alone would miss: an option that no price makes the best."""
    group = [Option("bad", 0, 10), Option("middle", 5, 6), Option("good", 9, 0)]
    assert hull(group) == [0, 2]
    found = best([group, group], 11)
    assert found is not None
    assert (found.cost, found.loss, sorted(found.chosen)) == (9, 10, [0, 2])
    found = best([group, group], 8)
    assert found is not None
    assert (found.cost, found.loss, sorted(found.chosen)) == (5, 16, [0, 1])
    assert best([group], -1) is None


def test_a_large_one_fills_its_limit() -> None:
    groups = [
        [Option("a", 17 + n % 5, (n * 7919) % 101 + 1.0), Option("b", 40 + n % 7, (n * 7919) % 101 / 9)]
        for n in range(200)
    ]
    limit = 5500
    found = best(groups, limit)
    assert found is not None
    assert limit - 1 <= found.cost <= limit
    lower = [pick for pick in sweep(groups) if pick.cost <= limit][-1]
    assert found.loss < lower.loss
