"""Draws lines and dots over two axes, and bars made of parts, as SVG text; needs nothing to be shown but a browser."""

from collections.abc import Sequence
from html import escape
from math import floor, isfinite, log10
from typing import NamedTuple

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 14, 46
COLOURS = 6
MOST = 1500
"""Points of one line that are drawn: more than pixels help nobody."""

Xy = tuple[float, float]


class Line(NamedTuple):
    """Points in the order they are joined, or not joined at all (`dots`).

    said    what is shown when the pointer is over a point, for each of them; none: its numbers
    large   which point is drawn larger
    """

    name: str
    points: Sequence[Xy]
    dots: bool = False
    said: Sequence[str] = ()
    large: int | None = None


class Axis:
    """A scale from values to pixels with round numbers on it. `at_labels`: numbers with other names."""

    def __init__(
        self, values: Sequence[float], low: float, high: float, *, log: bool = False,
        labels: Sequence[tuple[float, str]] = (), zero: bool = True,
    ):  # fmt: skip
        self.low, self.high, self.log = low, high, log
        least, most = min(values), max(values)
        if log:
            least, most = log10(least), log10(most)
        elif zero:
            least = min(0.0, least)
        room = (most - least or abs(most) or 1.0) * 0.04
        self.first = least if not log and zero and least == 0 else least - room
        self.last = most + room
        self.labels = list(labels) or self._ticks()

    def at(self, value: float) -> float:
        """The pixel of a value."""
        shown = log10(value) if self.log else value
        return self.low + (shown - self.first) / (self.last - self.first) * (self.high - self.low)

    def _ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return _even(self.first, self.last)
        if self.last - self.first < 1:  # less than a decade has few round powers in it
            return _even(10**self.first, 10**self.last)
        steps = (1, 2, 5) if self.last - self.first < 2.5 else (1,)
        found = [m * 10.0**e for e in range(floor(self.first), floor(self.last) + 1) for m in steps]
        return [(value, plain(value)) for value in found if self.first <= log10(value) <= self.last]


def _even(first: float, last: float) -> list[tuple[float, str]]:
    """Round numbers between two, evenly spaced."""
    raw = (last - first) / 5
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    begin = floor(first / step)
    values = [n * step for n in range(begin, begin + 8)]
    return [(value, plain(value)) for value in values if first - 1e-9 * step <= value <= last]


def plain(value: float) -> str:
    """A short number: 0.05, 2, 1,500, 20k, 3M."""
    if value and abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def draw(
    lines: Sequence[Line], x_label: str, y_label: str, *, log_x: bool = False, log_y: bool = False,
    x_labels: Sequence[tuple[float, str]] = (),
) -> str:  # fmt: skip
    """A chart with a legend; empty text where there is nothing to draw. Points with a `said` must all be drawable."""

    def drawable(point: Xy) -> bool:
        return all(map(isfinite, point)) and (point[0] > 0 or not log_x) and (point[1] > 0 or not log_y)

    kept = [line._replace(points=_thin(list(filter(drawable, line.points)))) for line in lines]
    kept = [line for line in kept if line.points]
    if not kept:
        return ""
    every = [point for line in kept for point in line.points]
    x = Axis([p[0] for p in every], LEFT, WIDTH - RIGHT, log=log_x, labels=x_labels, zero=not x_labels)
    y = Axis([p[1] for p in every], HEIGHT - BOTTOM, TOP, log=log_y)
    said = f"{escape(y_label)} over {escape(x_label)}"
    parts = [f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">']
    parts += _grid(x, y, x_label, y_label)
    for n, line in enumerate(kept):
        parts += _drawn(line, x, y, f"c{n % COLOURS}")
    names = legend([(line.name, "") for line in kept])
    return "".join(parts) + f"</svg><figcaption>{names}</figcaption></figure>"


def bar(parts: Sequence[tuple[str, float, str]], whole: float) -> str:
    """One bar of (name, amount, what is said of it) with its legend. `whole` is its full width."""
    said = f"{len(parts)} parts of a whole"
    found = [f'<figure><svg viewBox="0 0 {WIDTH} 28" role="img" aria-label="{said}">']
    found.append(f'<rect class="rest" width="{WIDTH}" height="26" rx="3"/>')
    at = 0.0
    for n, (name, amount, text) in enumerate(parts):
        width = max(0.0, min(amount / whole * WIDTH, WIDTH - at))
        found.append(
            f'<rect class="c{n % COLOURS}" x="{at:.1f}" width="{max(0.0, width - 1.5):.1f}" height="26">'
            f"<title>{escape(name)}: {escape(text)}</title></rect>"
        )
        at += width
    names = legend([(name, text) for name, _, text in parts])
    return "".join(found) + f"</svg><figcaption>{names}</figcaption></figure>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names in their colours, with what is said of each."""
    return "".join(
        f'<span class="c{n % COLOURS}">{escape(name)}{f" <b>{escape(said)}</b>" if said else ""}</span>'
        for n, (name, said) in enumerate(entries)
    )


def _thin(points: list[Xy]) -> list[Xy]:
    return points if len(points) <= MOST else [points[n * len(points) // MOST] for n in range(MOST)]


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    parts: list[str] = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value, label in x.labels:
        at = x.at(value)
        if LEFT - 1 <= at <= right + 1:
            parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom}"/>')
            parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" class="mid">{escape(label)}</text>')
    for value, label in y.labels:
        at = y.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" class="end">{escape(label)}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" class="mid">{escape(x_label)}</text>')
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" class="mid">{escape(y_label)}</text>')
    return parts


def _drawn(line: Line, x: Axis, y: Axis, colour: str) -> list[str]:
    at = [(x.at(px), y.at(py)) for px, py in line.points]
    parts: list[str] = []
    if not line.dots and len(at) > 1:
        joined = " ".join(f"{px:.1f},{py:.1f}" for px, py in at)
        parts.append(f'<polyline class="{colour}" points="{joined}"/>')
    if line.dots or len(at) <= 40:
        usual = 1.8 if line.dots and len(at) > 200 else 3
        said = line.said or [f"{plain(x)}, {plain(y)}" for x, y in line.points]
        for n, ((px, py), text) in enumerate(zip(at, said, strict=True)):
            parts.append(
                f'<circle class="{colour}" cx="{px:.1f}" cy="{py:.1f}" r="{5.5 if n == line.large else usual}">'
                f"<title>{escape(line.name)}: {escape(text)}</title></circle>"
            )
    return parts
