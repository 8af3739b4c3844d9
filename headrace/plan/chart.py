"""Draws lines over two logarithmic axes, and bars made of parts, as SVG text."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 78, 20, 24, 52
COLOURS = 6
"""Lines have the style classes c0 to c5, bars too."""
MINOR = (1, 2, 5)


class Point(NamedTuple):
    x: float
    y: float
    said: str
    """Shown when the pointer is over it."""
    big: bool = False


class Line(NamedTuple):
    name: str
    points: Sequence[Point]


class Axis:
    """A logarithmic scale from values to pixels, with round numbers on it."""

    def __init__(self, values: Sequence[float], low: float, high: float):
        self.first, self.last = log10(min(values)), log10(max(values))
        margin = max(0.04, 0.06 * (self.last - self.first))
        self.first, self.last = self.first - margin, self.last + margin
        self.low, self.high = low, high

    def at(self, value: float) -> float:
        part = (log10(value) - self.first) / (self.last - self.first)
        return self.low + part * (self.high - self.low)

    def ticks(self) -> list[float]:
        found = [
            digit * 10.0**power
            for power in range(floor(self.first), ceil(self.last) + 1)
            for digit in MINOR
            if self.first <= log10(digit * 10.0**power) <= self.last
        ]
        whole = [value for value in found if abs(log10(value) - round(log10(value))) < 1e-9]
        return whole if len(found) > 9 and len(whole) > 2 else found


def plain(value: float) -> str:
    """A number for a label: 0.05, 2, 1,500, 20k, 3M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.0f}" if value >= 1e3 else f"{value:g}"


def lines(drawn: Sequence[Line], x_label: str, y_label: str) -> str:
    """A chart of lines. Empty text where there is nothing to draw."""
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    x = Axis([p.x for line in drawn for p in line.points], LEFT, WIDTH - RIGHT)
    y = Axis([p.y for line in drawn for p in line.points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} against {escape(x_label)}">'
    ]
    parts += _axes(x, y, x_label, y_label)
    for n, line in enumerate(drawn):
        colour = f"c{n % COLOURS}"
        path = " ".join(f"{x.at(p.x):.1f},{y.at(p.y):.1f}" for p in line.points)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        for p in line.points:
            size = 6 if p.big else 3.5
            parts.append(
                f'<circle class="dot {colour}" cx="{x.at(p.x):.1f}" cy="{y.at(p.y):.1f}" r="{size}">'
                f"<title>{escape(line.name)}: {escape(p.said)}</title></circle>"
            )
    parts.append("</svg>")
    return "\n".join(parts)


def _axes(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    found = []
    for value in x.ticks():
        at = x.at(value)
        found.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        found.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{plain(value)}</text>'
        )
    for value in y.ticks():
        at = y.at(value)
        found.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        found.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{plain(value)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    found.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    found.append(
        f'<text class="label" transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return found


def bar(parts: Sequence[tuple[str, float, str]], whole: float) -> str:
    """One bar of (name, amount, what is said of it), over its full width `whole`."""
    found, at = [f'<svg viewBox="0 0 {WIDTH} 34" class="bar" role="img">'], 0.0
    found.append(f'<rect class="rest" x="0" y="2" width="{WIDTH}" height="30" rx="4"/>')
    for n, (name, amount, said) in enumerate(parts):
        width = max(0.0, min(amount / whole, 1 - at / WIDTH) * WIDTH)
        found.append(
            f'<rect class="fill c{n % COLOURS}" x="{at:.1f}" y="2" width="{max(0.0, width - 2):.1f}" height="30">'
            f"<title>{escape(name)}: {escape(said)}</title></rect>"
        )
        at += width
    found.append("</svg>")
    return "\n".join(found)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours, with what is said of each."""
    items = "".join(
        f'<li><span class="key c{n % COLOURS}"></span>{escape(name)}'
        f"{f' <b>{escape(said)}</b>' if said else ''}</li>"
        for n, (name, said) in enumerate(entries)
    )
    return f'<ul class="legend">{items}</ul>'
