"""What every benchmark command prints and writes: a table, a JSON file, a comparison with an earlier one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.config import knob
from headrace.bench.result import Measure, Result, compare

if TYPE_CHECKING:
    from headrace.engine.resolve import Plan

WORDS = {"better": "green", "worse": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a result goes, and what it is compared with."""

    output: Path | None = knob(None, "JSON file to write")
    compare: Path | None = knob(None, "earlier JSON file to compare with")


FileFlags = Annotated[Files, Parameter(name="*", negative=())]
"""The type of a command's parameter that brings these flags."""


def result(
    benchmark: str,
    settings: dict[str, Any],
    measures: list[Measure],
    plan: "Plan | None" = None,
    gpu: str | None = None,
) -> Result:
    """The result of a benchmark on this machine; `gpu` by name where there is no plan that says it."""
    if plan is not None and plan.device.type == "cuda":
        import torch

        gpu = torch.cuda.get_device_name(plan.device)
    return Result.here(benchmark, settings, measures, gpu)


def report(found: Result, files: Files, table: Table | None = None) -> None:
    """Print the table (of measures, or the one given); write the JSON where asked; say what changed since another."""
    table = table or _measures(found)
    table.caption = _where(found)
    console = Console()
    console.print(table)
    if files.compare is not None:
        console.print(_comparison(Result.read(files.compare), found))
    if files.output is not None:
        found.write(files.output)


def _measures(found: Result) -> Table:
    table = Table(title=found.benchmark)
    for heading in ("measure", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for measure in found.measures:
        table.add_row(measure.name, _number(measure.value), measure.unit)
    return table


def _comparison(before: Result, after: Result) -> Table:
    table = Table(title=f"against {before.commit or 'an unnamed commit'}")
    for heading in ("measure", "before", "after", "gain", "verdict"):
        table.add_column(heading, justify="left" if heading in ("measure", "verdict") else "right")
    for row in compare(before, after):
        gain = "" if row.gain is None else f"{row.gain:+.1%}"
        word = f"[{WORDS[row.word]}]{row.word}[/]" if row.word in WORDS else row.word
        table.add_row(f"{row.name} ({row.unit})", _number(row.before), _number(row.after), gain, word)
    return table


def _where(found: Result) -> str:
    machine = found.machine.get("gpu") or f"{found.machine['cpu']}, {found.machine['cores']} cores"
    return f"{machine}; torch {found.versions.get('torch', '?')}; commit {found.commit or 'unknown'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
