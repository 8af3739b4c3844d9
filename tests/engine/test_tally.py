"""Sizes of steps."""

from headrace.engine.tally import EDGES, Tally


def test_steps_are_counted_by_their_tokens():
    tally = Tally()
    assert tally.count([(0, 1)]) == 1
    assert tally.count([(5, 6)] * 3) == 3
    assert tally.count([(0, 8)]) == 8
    assert tally.count([(0, 20000), (7, 8)]) == 20001
    assert tally.rows == 7
    assert tally.sizes[:2] == [1, 2], "up to 1, and up to 8"
    assert tally.sizes[len(EDGES)] == 1, "more than every edge"
    assert tally.sizes[-1] == 20013
    assert sum(tally.sizes[:-1]) == 4
