"""What `headrace optimize` does once a recipe is there, with a budget or without: make the model, then judge it.

What an earlier run made but was killed before it had judged is not made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from headrace.base.config import from_names

if TYPE_CHECKING:
    from headrace.bench.judge import Trial
    from headrace.bench.report_optimize import Point, Story
    from headrace.optimize.job import Job
    from headrace.optimize.outcome import Outcome
    from headrace.optimize.preflight import Preflight
    from headrace.optimize.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was asked; `show` shows a preflight, `bar` opens a progress bar, `say` says what came of it."""

    model: str
    out: Path
    base: "Recipe"
    device: str
    fresh: bool
    dry_run: bool
    trial: "Trial"
    console: Console
    show: Callable[[Console, Any], None]
    bar: Callable[[Console], Any]
    say: Callable[[Console, "Outcome"], None]


def look_ahead(asked: Asked, recipe: "Recipe", out: Path) -> "tuple[Job, Preflight]":
    """Decide the run, and show what it will do."""
    from headrace.optimize.job import look
    from headrace.optimize.preflight import preflight

    job = look(asked.model, out, recipe, asked.device, asked.console.print)
    ahead = preflight(job)
    asked.show(asked.console, ahead)
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
    with asked.bar(asked.console) as bar:
        outcome = execute(job, ahead, asked.fresh, bar.tell, beside)
    asked.say(asked.console, outcome)
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
    from headrace.cli._load import Meter
    from headrace.optimize.job import device_named

    config = from_names(device=str(device_named(asked.device)))
    meter = Meter(asked.console)
    try:
        return judge(outcome, config, asked.trial, meter.tell, sensitivity=sensitivity, frontier=frontier)
    finally:
        meter.stop()
