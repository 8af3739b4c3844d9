"""Percentiles of buckets, and what was added in the last seconds."""

from random import Random

import pytest

from headrace.serve.families import ladder
from headrace.serve.series import Family, Histogram, Layout, Sheet
from headrace.serve.window import Window, quantile

EDGES = (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        ((4, 0, 0, 0), 0.5, 0.5),
        ((0, 4, 0, 0), 0.5, 1.5),
        ((0, 0, 4, 0), 0.25, 2.5),
        ((2, 2, 0, 0), 0.5, 1.0),
        ((2, 0, 2, 0), 0.75, 3.0),
        ((0, 0, 0, 3), 0.5, 4.0),
        ((1, 1, 1, 1), 1.0, 4.0),
        ((0, 0, 0, 0), 0.5, None),
        ((), 0.5, None),
    ],
)
def test_a_quantile_lies_evenly_in_its_bucket(counts: tuple[int, ...], part: float, expected: float | None):
    assert quantile(EDGES, counts, part) == expected


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_the_fine_ladder_gives_percentiles_within_a_step(part: float):
    family = Family("x", "histogram", "", edges=(0.01, 1.0), fine=ladder((0.01, 1.0)))
    sheet, random = Sheet(Layout([family])), Random(1)
    values = sorted(random.lognormvariate(-4, 1) for _ in range(4000))
    Histogram(sheet, "x").observe_all(values)
    found = quantile(family.kept, sheet.values.tolist()[:-1], part)
    assert found == pytest.approx(values[int(part * len(values))], rel=0.08)


def test_a_window_gives_what_was_added_in_it():
    window = Window(10.0, 1.0)
    assert window.push(0.0, [5.0]) == (0.0, [0.0])
    assert window.push(4.0, [7.0]) == (4.0, [2.0])
    assert window.push(10.0, [9.0]) == (10.0, [4.0])
    span, added = window.push(15.0, [10.0])
    assert (span, added) == (11.0, [3.0]), "from the newest snapshot that is old enough"


def test_a_window_keeps_few_snapshots():
    window = Window(10.0, 1.0)
    for n in range(10_000):
        window.push(n * 0.01, [float(n)])
    assert len(window._taken) <= 24


def test_after_idleness_nothing_is_as_old_as_the_work_before_it():
    window = Window(10.0, 1.0)
    window.push(0.0, [0.0])
    window.push(0.5, [100.0])
    window.push(490.0, [100.0])
    assert window.push(500.0, [100.0])[1] == [0.0]
