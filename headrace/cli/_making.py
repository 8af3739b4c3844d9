"""What `headrace optimize` does once a recipe is there, with a budget or without: make the model, then judge it.

What an earlier run made but was killed before it had judged is not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from headrace.base.config import from_names
from headrace.cli._load import Meter
from headrace.cli._print import table

if TYPE_CHECKING:
    from headrace.bench.judge import Trial
    from headrace.bench.report_optimize import Point, Story
    from headrace.optimize.job import Job
    from headrace.optimize.outcome import Outcome
    from headrace.optimize.preflight import Preflight
    from headrace.optimize.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was asked."""

    model: str
    out: Path
    base: "Recipe"
    device: str
    fresh: bool
    dry_run: bool
    trial: "Trial"
    console: Console


def look_ahead(asked: Asked, recipe: "Recipe", out: Path) -> "tuple[Job, Preflight]":
    """Decide the run, and show what it will do."""
    from headrace.optimize.job import look
    from headrace.optimize.preflight import preflight

    job = look(asked.model, out, recipe, asked.device, asked.console.print)
    ahead = preflight(job)
    _show(asked.console, ahead)
    return job, ahead


def made(asked: Asked, recipe: "Recipe", out: Path, beside: Mapping[str, Any] | None = None) -> "Outcome":
    """The model in `out`; one that lies there finished, made so, is taken as it is, if something is left to do."""
    from headrace.optimize.run import execute

    found = finished(asked, recipe, out)
    if found is not None and (not found[1] or out != asked.out):
        asked.console.print(
            f"{out} is finished; what is left is to compare it with the model", highlight=False
        )
        return found[0]
    job, ahead = look_ahead(asked, recipe, out)
    with Meter(asked.console, lines=1, clock=True) as meter:
        outcome = execute(job, ahead, asked.fresh, meter.report, beside)
    _say(asked.console, outcome)
    return outcome


def finished(asked: Asked, recipe: "Recipe", out: Path) -> "tuple[Outcome, bool] | None":
    """What a run made of this model by this recipe, and whether its report has all that is asked for."""
    from headrace.optimize.outcome import read_report

    if asked.fresh or asked.dry_run or (found := read_report(out)) is None:
        return None
    outcome, report = found
    settled = replace(recipe, scheme=recipe.scheme or outcome.recipe.scheme)
    if (outcome.model, outcome.recipe.as_object()) != (asked.model, settled.as_object()):
        return None
    return outcome, "run" in report and bool(report.get("quality") or not asked.trial.texts)


def judged(
    asked: Asked,
    outcome: "Outcome",
    sensitivity: Mapping[str, Mapping[str, float]] | None = None,
    frontier: "Sequence[Point]" = (),
) -> "Story":
    """Measure what was asked for, and write the report."""
    from headrace.bench.judge import judge
    from headrace.optimize.job import device_named

    config = from_names(device=str(device_named(asked.device)))
    with Meter(asked.console) as meter:
        return judge(outcome, config, asked.trial, meter.tell, sensitivity=sensitivity, frontier=frontier)


# -- what is shown of it ----------------------------------------------------------------------------------------


def _show(console: Console, ahead: "Preflight") -> None:
    shown = table(("layer", "becomes", "why"), (), words=range(3), box=None, pad_edge=False)
    for heading in ("from", "to"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for label, rows in _alike(ahead):
        before, after = sum(row.before for row in rows), sum(row.after for row in rows)
        shown.add_row(label, rows[0].becomes, rows[0].why, _mb(before), _mb(after))
    console.print(shown)
    cost = ahead.cost
    console.print(
        f"{_mb(ahead.before)} will become about {_mb(ahead.after)}; it takes about {_time(cost.seconds)}, "
        f"{_mb(cost.memory)} of memory and {_mb(cost.disk)} of disk meanwhile",
        highlight=False,
    )
    for note in ahead.notes:
        console.print(f"note: {note}", highlight=False)


def _alike(ahead: "Preflight") -> "list[tuple[str, list]]":
    """Rows of like layers of all blocks that get the same, under one name."""
    groups: dict[tuple[str, str, str], list] = {}
    for row in ahead.rows:
        parts = ["*" if part.isdecimal() else part for part in row.name.split(".")]
        groups.setdefault((".".join(parts), row.becomes, row.why), []).append(row)
    return [
        (f"{name} ({len(rows)})" if len(rows) > 1 else rows[0].name, rows)
        for (name, _, _), rows in groups.items()
    ]


def _say(console: Console, outcome: "Outcome") -> None:
    rounded = [layer for layer in outcome.layers if layer.scheme != "none"]
    worst = sorted(rounded, key=lambda layer: -layer.error)[:3]
    console.print(
        f"{outcome.out}: {_mb(outcome.before)} became {_mb(outcome.after)}, {outcome.bits:.2f} bits per weight of "
        f"its blocks' layers, in {_time(outcome.seconds)}",
        highlight=False,
    )
    if worst:
        names = ", ".join(f"{layer.name} {layer.error:.1%}" for layer in worst)
        console.print(f"outputs that changed most: {names}", highlight=False)


def _mb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**10 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
