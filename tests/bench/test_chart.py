"""Charts as SVG."""

import re

import pytest

from headrace.bench.chart import WIDTH, Axis, Line, bar, draw, plain


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
    [(0, "0"), (0.05, "0.05"), (1500, "1,500"), (20000, "20k"), (2e6, "2M"), (0.0001, "0.0001")],
)
def test_numbers_are_short(value: float, text: str):
    assert plain(value) == text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.001, 5e9], [3.0, 4.0]])
def test_an_axis_holds_its_values(values: list[float], log: bool):
    axis = Axis(values, 100, 500, log=log)
    assert all(100 <= axis.at(value) <= 500 for value in values)
    marks = [axis.at(value) for value, _ in axis.labels]
    assert marks == sorted(marks)
    assert 1 <= len(marks) <= 15
    assert all(99.9 <= mark <= 500.1 for mark in marks)


def test_a_point_can_be_large_and_say_more_than_its_numbers():
    text = draw([Line("a", [(1, 5), (2, 6)], said=["<one>", "two"], large=1)], "x", "y", log_x=True)
    assert "<title>a: &lt;one&gt;</title>" in text
    assert re.findall(r'r="([\d.]+)"', text) == ["3", "5.5"]


def test_a_bar_never_leaves_its_frame():
    text = bar([("<a>", 3.0, "x"), ("b", 3.0, "y")], 4.0)
    widths = [float(width) for width in re.findall(r'class="c\d"[^>]*width="([\d.]+)"', text)]
    assert len(widths) == 2
    assert sum(widths) <= WIDTH
    assert "&lt;a&gt; <b>x</b>" in text
