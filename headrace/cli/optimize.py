"""Makes a model cheaper: rounds its weights by a recipe, and measures what that did."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from headrace.base.errors import Refused
from headrace.cli import _budget
from headrace.cli._making import Asked, judged, look_ahead, made

if TYPE_CHECKING:
    from headrace.bench.judge import Trial
    from headrace.bench.report_optimize import Story
    from headrace.optimize.outcome import Outcome
    from headrace.optimize.preflight import Preflight
    from headrace.optimize.recipe import Recipe

NO_SEARCH = _budget.Search()


def run(
    model: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    scheme: str | None = None,
    algorithm: str | None = None,
    recipe: Path | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    seed: int | None = None,
    text: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    device: str = "auto",
    fresh: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    eval: Annotated[bool, Parameter(negative="--no-eval")] = True,
    windows: int = 8,
    search: Annotated[_budget.Search, Parameter(name="*")] = NO_SEARCH,
) -> None:
    """Make a cheaper model of a model: its weights in 4 or 8 bits, written for headrace, vLLM and transformers.

    With a budget (--target-bits, --max-kl, --max-latency-ms) it measures what rounding each layer costs, picks a scheme
    for each that keeps the budget at least loss, and shows what other sizes would have cost.

    Says first what will be done to which layer and why, and what it takes. Stopped at any time and started again with
    the same words, it goes on where it stood. Ends by comparing the result with the model, in report.html beside it;
    of a folder that is finished but not compared yet only that is done.

    Parameters
    ----------
    model
        a known name, a folder, a .gguf file, or a repo id on the Hugging Face hub
    out
        the folder to be written, which must not exist yet
    scheme
        of the layers in the blocks: w4a16_g64, w8a8, fp8, ... (docs/quantization.md has them all); if left out,
        w4a16 in the largest groups that divide the model's layers
    algorithm
        passes in order, with commas: rtn, gptq, awq,gptq, rotation,gptq, smoothquant,gptq, wanda, sparsegpt, ...;
        if left out, gptq, or rtn where that cannot make the scheme
    recipe
        YAML file with schemes layer by layer, and options of passes, instead of these two; docs/optimize.md
    samples
        windows of text that layers are watched with; 128 if left out, 0 for no calibration
    tokens
        tokens in each; 512 if left out
    seed
        of the draw of windows
    text
        files to calibrate with, or agents, gsm8k, humaneval, comedy, which are fetched with pip (6 MB in all)
    device
        where it is computed: cpu, cuda; auto: on a GPU where there is one. With a budget it may be the GPU that
        --max-latency-ms is for, as `headrace plan` calls it: h200, a100, l4, ...; then auto
    fresh
        throw away what an unfinished run left behind
    dry_run
        only say what would be done
    eval
        compare the result with the model at the end, and time both
    windows
        windows of 512 tokens, of each of three texts, that are compared; 0: all there are
    """
    if windows < 0:
        raise Refused(f"--windows is {windows}; expected 0 or more", param="windows")
    if out is None and not dry_run:
        raise Refused("no folder to write to", param="out", hint="add -o FOLDER, or --dry-run")
    console = Console(stderr=True)
    given = {"samples": samples, "tokens": tokens, "seed": seed, "texts": tuple(text) if text else None}
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = _recipe(scheme, algorithm, recipe, changes)
    search.check()
    goal = out or Path(f"{Path(model).name}-optimized")
    trial = _trial(windows, eval)
    asked = Asked(model, goal, chosen, device, fresh, dry_run, trial, console, _show, _Bar, _say)
    if search.budgets:
        story = _budget.run(asked, search)
    elif dry_run:
        look_ahead(asked, chosen, goal)
        return
    else:
        story = judged(asked, made(asked, chosen, goal))
    if story is not None:
        _conclude(console, story)


def _recipe(
    scheme: str | None, algorithm: str | None, file: Path | None, calibration: dict[str, Any]
) -> "Recipe":
    from headrace.optimize.calibrate import Calibration
    from headrace.optimize.entry import made_of, recipe_of

    if file is None:
        return recipe_of(scheme, algorithm, Calibration(**calibration))
    if scheme is not None or algorithm is not None:
        raise Refused("--recipe says scheme and algorithm", param="recipe", hint="leave out either")
    made = made_of(file)
    return replace(made, calibration=replace(made.calibration, **calibration))


class _Bar:
    """How much of the work is done and how long the rest will take; a line per block where there is no terminal."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None)
        self._stage = ""

    def __enter__(self) -> "_Bar":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, what: str, done: float, total: float) -> None:
        """See optimize.walk.Report."""
        self._bars.update(self._task, description=what, completed=done, total=total or None)
        stage = what.partition(":")[0]
        if stage != self._stage and not self._console.is_terminal:
            self._console.print(stage, highlight=False)
        self._stage = stage


def _show(console: Console, ahead: "Preflight") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "becomes", "why"):
        table.add_column(heading, overflow="fold")
    for heading in ("from", "to"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, rows in _alike(ahead):
        first = rows[0]
        before, after = sum(row.before for row in rows), sum(row.after for row in rows)
        table.add_row(label, first.becomes, first.why, _mb(before), _mb(after))
    console.print(table)
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


def _trial(windows: int, measure: bool) -> "Trial":
    from headrace.bench.judge import Trial

    return Trial(windows=windows or None) if measure else Trial(texts=(), generated=0)


def _conclude(console: Console, story: "Story") -> None:
    from headrace.bench.judge import lines

    for line in lines(story):
        console.print(line, highlight=False)


def _mb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**10 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
