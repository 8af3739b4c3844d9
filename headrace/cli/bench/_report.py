"""What every benchmark command prints and writes: a table, a JSON file, a comparison with an earlier one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.config import knob
from headrace.base.errors import Refused
from headrace.bench.files import check_writable
from headrace.bench.result import Measure, Result, Verdict, compare
from headrace.cli._print import table

WORDS = {"better": "green", "worse": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a result goes, and what it is compared with."""

    output: Path | None = knob(None, "JSON file to write")
    compare: Path | None = knob(None, "earlier JSON file to compare with")

    def __post_init__(self) -> None:
        """Raises Refused for files that could not be used: now, not when all is measured."""
        if self.output is not None:
            check_writable(self.output)
        if self.compare is not None:
            Result.read(self.compare)


FileFlags = Annotated[Files, Parameter(name="*", negative=())]
"""The type of a command's parameter that brings these flags."""


def report(
    benchmark: str,
    settings: dict[str, Any],
    measures: list[Measure],
    files: Files,
    gpu: str | None = None,
    shown: Table | None = None,
) -> None:
    """Print the table (of measures, or the one given); write the JSON where asked; say what changed since another.

    All of it was measured on this machine, on `gpu` where that has a name.
    """
    found = Result.here(benchmark, settings, measures, gpu)
    shown = shown or _measures(found)
    shown.caption = _where(found)
    console = Console()
    console.print(shown)
    if files.output is not None:
        found.write(files.output)
    if files.compare is not None:
        console.print(_comparison(Result.read(files.compare), found))


def _measures(found: Result) -> Table:
    rows = [(measure.name, _number(measure.value), measure.unit) for measure in found.measures]
    return table(("measure", "value", "unit"), rows, words=(0, 2), title=found.benchmark)


def _comparison(before: Result, after: Result) -> Table:
    if before.benchmark != after.benchmark:
        raise Refused(
            f"the earlier result is of `bench {before.benchmark}`; one of `bench {after.benchmark}` is expected",
            param="compare",
        )

    def cells(row: Verdict) -> tuple[str, ...]:
        gain = "" if row.gain is None else f"{row.gain:+.1%}"
        word = f"[{WORDS[row.word]}]{row.word}[/]" if row.word in WORDS else row.word
        return f"{row.name} ({row.unit})", _number(row.before), _number(row.after), gain, word

    heads, title = ("measure", "before", "after", "gain", "verdict"), before.commit or "an unnamed commit"
    return table(heads, map(cells, compare(before, after)), words=(0, 4), title=f"against {title}")


def _where(found: Result) -> str:
    machine = found.machine.get("gpu") or f"{found.machine['cpu']}, {found.machine['cores']} cores"
    return f"{machine}; torch {found.versions.get('torch', '?')}; commit {found.commit or 'unknown'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
