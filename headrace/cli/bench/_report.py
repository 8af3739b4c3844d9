"""What every benchmark command prints and writes: a table, a JSON file, a comparison with an earlier one."""

from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.config import knob
from headrace.base.words import dtype_name
from headrace.bench.files import check_writable
from headrace.bench.result import NOISE, Measure, Result, Verdict, as_json, compare
from headrace.cli._print import table

if TYPE_CHECKING:
    from headrace.engine.resolve import Plan

WORDS = {"better": "green", "worse": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a result goes, and what it is compared with."""

    output: Path | None = knob(None, "JSON file to write")
    compare: Path | None = knob(None, "earlier JSON file to compare with")

    def begin(self, benchmark: str) -> "Report":
        """Raises Refused for files that could not be used: to be called before anything is measured."""
        if self.output is not None:
            check_writable(self.output)
        before = None if self.compare is None else Result.read(self.compare, benchmark)
        return Report(benchmark, self.output, before)


FileFlags = Annotated[Files, Parameter(name="*", negative=())]
"""The type of a command's parameter that brings these flags."""


@dataclass(frozen=True, slots=True)
class Report:
    """What becomes of a benchmark's measures."""

    benchmark: str
    output: Path | None
    before: Result | None

    def show(
        self,
        settings: dict[str, Any],
        measures: list[Measure],
        gpu: str | None = None,
        shown: Table | None = None,
    ) -> None:
        """Write the JSON where asked; print the table (of measures, or the one given) and what changed.

        All of it was measured on this machine, on `gpu` where that has a name.
        """
        found = Result.here(self.benchmark, settings, measures, gpu)
        try:
            if self.output is not None:
                found.write(self.output)
        finally:  # neither a full disk nor a reader who has left takes the one with the other
            shown = shown or _measures(found)
            shown.caption = _where(found)
            console = Console()
            console.print(shown)
            if self.before is not None:
                console.print(_comparison(self.before, found))


def facts(plan: "Plan") -> dict[str, Any]:
    """What of a plan its speed depends on."""
    return {
        "model": plan.model,
        "dtype": dtype_name(plan.dtype),
        "quantization": plan.quantization,
        "kv_dtype": dtype_name(plan.kv_dtype),
        "kv_tokens": plan.kv_tokens,
        "deterministic": plan.deterministic,
        "rows": plan.rows,
        "tokens": plan.tokens,
    }


def _measures(found: Result) -> Table:
    rows = [(measure.name, _number(measure.value), measure.unit) for measure in found.measures]
    return table(("measure", "value", "unit"), rows, words=(0, 2), title=found.benchmark)


def _comparison(before: Result, after: Result) -> Table:
    def cells(row: Verdict) -> tuple[str, ...]:
        gain = "" if row.gain is None else f"{row.gain:+.1%}"
        word = f"[{WORDS[row.word]}]{row.word}[/]" if row.word in WORDS else row.word
        return f"{row.name} ({row.unit})", _number(row.before), _number(row.after), gain, word

    heads, title = ("measure", "before", "after", "gain", "verdict"), before.commit or "an unnamed commit"
    rows = map(cells, compare(before, after))
    return table(heads, rows, words=(0, 4), title=f"against {title}", caption=_apart(before, after))


def _apart(before: Result, after: Result) -> str | None:
    """In what the runs differ, where that may be why their numbers do."""
    old, new = (as_json(result.machine | result.settings) for result in (before, after))
    pairs = [(name, old.get(name), new.get(name)) for name in old | new]
    said = [f"{name} {then}, now {now}" for name, then, now in pairs if not _alike(then, now)]
    return f"measured otherwise: {'; '.join(said)}" if said else None


def _alike(then: Any, now: Any) -> bool:
    """Measured limits and what engines say of themselves are never quite the same."""
    if isinstance(then, float) and isinstance(now, float):
        return isclose(then, now, rel_tol=NOISE)
    return then == now or isinstance(now, dict | list)


def _where(found: Result) -> str:
    machine = found.machine.get("gpu") or f"{found.machine['cpu']}, {found.machine['cores']} cores"
    return f"{machine}; torch {found.versions.get('torch', '?')}; commit {found.commit or 'unknown'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
