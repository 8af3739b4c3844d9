"""Numbers for Prometheus as one flat run of float64 per process, and their text, rendered from templates.

A number is added to by its index, with no object per series. Several processes each keep a sheet in a file of
the same folder; a scrape answered by any of them shows the totals.
"""

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

LAZY = 0.5
"""Seconds for which the text of histograms and of families with many series is kept."""

Labels = tuple[tuple[str, str], ...]
"""Label names with their values, in the order they are written."""


class Family(NamedTuple):
    """One metric with all its series.

    name     as it is written, `_total` included where a counter has it
    series   the label sets beyond those every series has; one slot (a histogram: one run) for each
    edges    upper bounds of a histogram's buckets as they are shown
    fine     bounds it is kept with, `edges` among them; empty: `edges`
    aliases  further names the same numbers are shown under
    bare     of the HTTP server, whatever is behind it: without the labels that every series has, and a series is
             there from its first use on
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    series: tuple[Labels, ...] = ((),)
    edges: tuple[float, ...] = ()
    fine: tuple[float, ...] = ()
    aliases: tuple[str, ...] = ()
    bare: bool = False

    @property
    def kept(self) -> tuple[float, ...]:
        """The bounds of the buckets in memory."""
        return self.fine or self.edges

    @property
    def width(self) -> int:
        """Slots of one series: one, or a histogram's buckets, the one without bound, and the sum."""
        return len(self.kept) + 2 if self.kind == "histogram" else 1


class Layout:
    """Where each family's numbers are in a sheet. The same families give the same places in every process."""

    def __init__(self, families: Iterable[Family]):
        self.families = tuple(families)
        self.starts: dict[str, int] = {}
        self._places: dict[tuple[str, ...], int] = {}
        size = 0
        for family in self.families:
            self.starts[family.name] = size
            for series in family.series:
                self._places[(family.name, *(value for _, value in series))] = size
                size += family.width
        self.size = size
        self._named = {family.name: family for family in self.families}

    def family(self, name: str) -> Family:
        return self._named[name]

    def at(self, name: str, *labels: str) -> int:
        """The (first) slot of a series, found by its label values. Raises KeyError for one that is not there."""
        return self._places[(name, *labels)]


class Sheet:
    """The numbers of one process: in memory, or in a file that other processes of this machine read.

    A file that is already there goes on from what it holds, so counters never fall when a process is replaced.
    """

    def __init__(self, layout: Layout, path: Path | None = None):
        self.layout = layout
        self.values = memory(layout.size * 8, path).cast("d")

    def add(self, at: int, amount: float = 1.0) -> None:
        self.values[at] += amount

    def set(self, at: int, value: float) -> None:
        self.values[at] = value


class Histogram:
    """One histogram's buckets in a sheet."""

    __slots__ = ("at", "edges", "last", "values")

    def __init__(self, sheet: Sheet, name: str, *labels: str):
        self.values = sheet.values
        self.edges = list(sheet.layout.family(name).kept)
        self.at = sheet.layout.at(name, *labels)
        self.last = self.at + len(self.edges) + 1

    def observe(self, value: float) -> None:
        """Count a value."""
        values = self.values
        values[self.at + bisect_left(self.edges, value)] += 1
        values[self.last] += value

    def observe_all(self, found: Iterable[float]) -> None:
        """Count many values."""
        counts, edges = [0] * (len(self.edges) + 1), self.edges
        total = 0.0
        for value in found:
            counts[bisect_left(edges, value)] += 1
            total += value
        values = self.values
        for n, times in enumerate(counts, self.at):
            if times:
                values[n] += times
        values[self.last] += total


class Page:
    """The text of all families for given common labels. What did not change since the last call is not redone."""

    def __init__(self, layout: Layout, common: Labels):
        parts = [_Part(family, layout.starts[family.name], common) for family in layout.families]
        self._prompt = [part for part in parts if part.prompt]
        self._slow = [part for part in parts if not part.prompt]
        self._slow_text = b""
        self._made = -LAZY

    def render(self, sheets: Sequence["memoryview[float]"], now: float) -> bytes:
        """The sums of the sheets' numbers in the Prometheus text format 0.0.4, at `now` (monotonic seconds).

        Histograms and families of many series are most of the work, and nobody steers by their latest value:
        they are redone every LAZY seconds.
        """
        values = sheets[0] if len(sheets) == 1 else totals(sheets)
        if now - self._made >= LAZY:
            self._made = now
            self._slow_text = b"".join([part.text(values) for part in self._slow])
        return b"".join([part.text(values) for part in self._prompt]) + self._slow_text


def totals(sheets: Sequence["memoryview[float]"]) -> "memoryview[float]":
    """The sheets added up, slot by slot."""
    return memoryview(array("d", map(sum, zip(*sheets, strict=True))))


def neighbours(folder: Path, layout: Layout) -> list["memoryview[float]"]:
    """The sheets that processes keep in a folder, to be read."""
    found: list[memoryview[float]] = []
    for path in sorted(folder.glob("*.sheet")):
        with suppress(OSError), path.open("rb") as file:  # it may be removed meanwhile
            if path.stat().st_size == layout.size * 8:
                shared = mmap.mmap(file.fileno(), layout.size * 8, access=mmap.ACCESS_READ)
                found.append(memoryview(shared).cast("d"))
    return found


def memory(size: int, path: Path | None) -> memoryview:
    """So many bytes, zero at first; with a path those of a file, which whoever maps it has in common."""
    if path is None:
        return memoryview(bytearray(size))
    with path.open("a+b") as file:
        file.truncate(size)  # new bytes are zero; old ones stay
        return memoryview(mmap.mmap(file.fileno(), size))


def info(name: str, help: str, labels: Mapping[str, str], value: float = 1) -> bytes:
    """The text of a gauge that says something by its labels."""
    family = Family(name, "gauge", help, (tuple(labels.items()),))
    return (_Part(family, 0, ()).template([0]) % _number(value)).encode()


class _Part:
    """One family's text."""

    def __init__(self, family: Family, start: int, common: Labels):
        self.family, self.start = family, start
        self.stop = start + family.width * len(family.series)
        self.prompt = family.kind != "histogram" and not family.bare and len(family.series) < 10
        self.names = (family.name, *family.aliases)
        bounds = family.fine or family.edges
        self._picks = [bounds.index(edge) for edge in family.edges]  # of a histogram; others have no edges
        self._labels = [series if family.bare else common + series for series in family.series]
        self._used: Sequence[int] | None = None
        self._template = ""
        self._before: bytes | None = None
        self._shown = b""

    def template(self, used: Sequence[int]) -> str:
        """HELP and TYPE for each name, and a line per number of the series `used`, each with a %s for the number."""
        family, text = self.family, ""
        for name in self.names:
            text += f"# HELP {name} {_escaped(family.help, quotes=False)}\n".replace("%", "%%")
            text += f"# TYPE {name} {family.kind}\n"
            for n in used:
                text += self._lines(name, self._labels[n])
        return text

    def text(self, values: "memoryview[float]") -> bytes:
        raw = values[self.start : self.stop].tobytes()
        if raw != self._before:
            self._before = raw
            found, width = values[self.start : self.stop].tolist(), self.family.width
            used = range(len(self._labels))
            if self.family.bare:
                used = [n for n in used if any(found[n * width : (n + 1) * width])]
            if used != self._used:
                self._used, self._template = used, self.template(used)
            numbers = self._buckets(found, used) if self._picks else [_number(found[n]) for n in used]
            self._shown = (self._template % tuple(numbers * len(self.names))).encode()
        return self._shown

    def _lines(self, name: str, labels: Labels) -> str:
        if self.family.kind != "histogram":
            return f"{name}{_braces(labels)} %s\n"
        edges = [*map(repr, map(float, self.family.edges)), "+Inf"]
        text = "".join([f"{name}_bucket{_braces((*labels, ('le', edge)))} %s\n" for edge in edges])
        return text + f"{name}_sum{_braces(labels)} %s\n{name}_count{_braces(labels)} %s\n"

    def _buckets(self, found: Sequence[float], used: Sequence[int]) -> list[str | int]:
        width, numbers = self.family.width, []
        for n in used:
            run = found[n * width : (n + 1) * width]
            below = list(map(int, accumulate(run[:-1])))
            numbers += [below[i] for i in self._picks]
            numbers += [below[-1], _number(run[-1]), below[-1]]
        return numbers


def _braces(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return ("{" + inside + "}").replace("%", "%%") if inside else ""


def _escaped(text: str, quotes: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    return str(int(value)) if value % 1 == 0 and abs(value) < 2**53 else repr(value)
