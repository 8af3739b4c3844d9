"""Charts as SVG."""

import re

import pytest

from headrace.bench.chart import Line, draw, plain


def test_a_chart_stays_inside_its_frame():
    for log in (False, True):
        text = draw(
            [Line("a", [(0, 1), (5, 1000), (10, 0.01)]), Line("b", [(3, 3)], dots=True)], "x", "y", log_y=log
        )
        points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', text)[0].split()]
        assert len(points) == 3
        assert all(60 <= x <= 620 and 0 <= y <= 300 for x, y in points)
        assert text.count("<circle") == 4


@pytest.mark.parametrize("lines", [[], [Line("a", [])], [Line("a", [(1, float("nan"))])]])
def test_nothing_to_draw_is_no_chart(lines: list[Line]):
    assert draw(lines, "x", "y") == ""


def test_a_single_point_is_drawn():
    assert "<circle" in draw([Line("a", [(1, 5)])], "x", "y")
    assert "<circle" in draw([Line("a", [(0, 0)])], "x", "y")
    assert "<circle" in draw([Line("a", [(1, 5)])], "x", "y", log_y=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (1500, "1,500"), (20000, "20k"), (2e6, "2e+06"), (0.0001, "0.0001")],
)
def test_numbers_are_short(value: float, text: str):
    assert plain(value) == text
