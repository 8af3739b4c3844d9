"""Makes a model cheaper: rounds its weights by a recipe, and measures what that did."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from headrace.base.config import knob
from headrace.base.errors import Refused
from headrace.cli import _budget
from headrace.cli._budget import Search
from headrace.cli._making import Asked, judged, look_ahead, made
from headrace.cli.bench._checks import at_least

if TYPE_CHECKING:
    from headrace.bench.judge import Trial
    from headrace.optimize.recipe import Recipe

NO_SEARCH = Search()


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The recipe, and what is calibrated with."""

    scheme: str | None = knob(
        None,
        "of the layers in the blocks: w4a16_g64, w8a8, fp8, ... (docs/quantization.md has them all); if left out,"
        " w4a16 in the largest groups that divide the model's layers",
    )
    algorithm: str | None = knob(
        None,
        "passes in order, with commas: rtn, gptq, awq,gptq, rotation,gptq, smoothquant,gptq, wanda, sparsegpt, ...;"
        " if left out, gptq, or rtn where that cannot make the scheme",
    )
    recipe: Path | None = knob(
        None,
        "YAML file with schemes layer by layer, and options of passes, instead of these two; docs/optimize.md",
    )
    samples: int | None = knob(
        None, "windows of text that layers are watched with; 128 if left out, 0 for no calibration"
    )
    tokens: int | None = knob(None, "tokens in each; 512 if left out")
    seed: int | None = knob(None, "of the draw of windows")
    text: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = knob(
        None,
        "files to calibrate with, or agents, gsm8k, humaneval, comedy, which are fetched with pip (6 MB in all)",
    )

    def chosen(self) -> "Recipe":
        """Raises Refused for a file of a recipe beside what it says."""
        from headrace.optimize.calibrate import Calibration
        from headrace.optimize.entry import made_of, recipe_of

        given = {"samples": self.samples, "tokens": self.tokens, "seed": self.seed}
        given |= {"texts": tuple(self.text) if self.text else None}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.recipe is None:
            return recipe_of(self.scheme, self.algorithm, Calibration(**changes))
        if self.scheme is not None or self.algorithm is not None:
            raise Refused("--recipe says scheme and algorithm", param="recipe", hint="leave out either")
        made = made_of(self.recipe)
        return replace(made, calibration=replace(made.calibration, **changes))


def run(
    model: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    how: Annotated[How, Parameter(name="*")] = How(),
    device: str = "auto",
    fresh: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    eval: Annotated[bool, Parameter(negative="--no-eval")] = True,
    windows: int = 8,
    search: Annotated[Search, Parameter(name="*")] = NO_SEARCH,
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
    at_least(0, windows=windows)
    if out is None and not dry_run:
        raise Refused("no folder to write to", param="out", hint="add -o FOLDER, or --dry-run")
    console = Console(stderr=True)
    recipe = how.chosen()
    search.check()
    goal = out or Path(f"{Path(model).name}-optimized")
    asked = Asked(model, goal, recipe, device, fresh, dry_run, _trial(windows, eval), console)
    if search.budgets:
        story = _budget.run(asked, search)
    elif dry_run:
        look_ahead(asked, recipe, goal)
        return
    else:
        story = judged(asked, made(asked, recipe, goal))
    if story is not None:
        from headrace.bench.judge import lines

        for line in lines(story):
            console.print(line, highlight=False)


def _trial(windows: int, measure: bool) -> "Trial":
    from headrace.bench.judge import Trial

    return Trial(windows=windows or None) if measure else Trial(texts=(), generated=0)
