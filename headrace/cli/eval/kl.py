"""Measures how far predictions of models are from those of the one that they were made of."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from headrace.base.errors import Refused
from headrace.base.words import dtype_name
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import Meter
from headrace.cli._print import table
from headrace.cli.eval._inputs import (
    KNOWN,
    JsonFlag,
    TextFlag,
    named,
    open_plain,
    read_texts,
    said,
    write_rows,
)

if TYPE_CHECKING:
    from headrace.bench.divergence import Divergence
    from headrace.bench.plain import Plain
    from headrace.bench.result import Measure

NOTE = "± one standard error, by windows; KL in nats per token; top-1: share with the same likeliest token"


def run(
    base: Annotated[str, Parameter(name="BASE")],
    /,
    *other: Annotated[str, Parameter(name="OTHER")],
    text: TextFlag = list(KNOWN),  # noqa: B006 - never changed
    tokens: int = 512,
    windows: int = 8,
    json: JsonFlag = False,
    engine: EngineFlags = Engine(),
) -> None:
    """Measure how far other models' predictions are from a base's: KL divergence, top-1 agreement, perplexities.

    All are in memory at once, and read the same tokens. The base and models without quantization are computed in
    --dtype; a quantized checkpoint is multiplied as it says, inputs rounded if it says so. With --quantization, OTHER
    is rounded while it is loaded, and may be left out: then it is the base itself.

    Parameters
    ----------
    base
        the model as it was
    other
        what was made of it
    text
        text files, or gsm8k, hamlet, humaneval, lear, which are fetched with pip (5 MB in all)
    tokens
        tokens predicted per window; windows are read alone, beginning with one token that nothing predicts
    windows
        how many windows from the beginning of each text; 0: all of it
    json
        print JSON instead of a table
    """
    config = engine.config
    named([base], config)
    rounded = config.model.quantization != "auto"
    if not other and not rounded:
        raise Refused(
            "there is nothing to compare with",
            param="other",
            hint="give a second model, or --quantization for the base itself rounded",
        )
    read = read_texts(text, tokens, windows)
    from headrace.bench import divergence
    from headrace.bench.plain import as_judged

    first = open_plain(as_judged(config, base))
    others = [open_plain(as_judged(config, each, config.model.quantization)) for each in other or [base]]
    cut = divergence.windows(first, others, read, tokens, windows or None)
    with Meter() as meter:
        rows = divergence.compare(first, others, cut, lambda done, of: meter.tell("comparing", done / of))
    if json:
        settings = {"base": base, "tokens": tokens, "windows": windows}
        settings |= {"dtype": dtype_name(first.dtype), "device": str(first.device)}
        write_rows("kl", settings, _measures(others, rows), first.device, _records(others, rows))
        return
    for one, found in zip(others, rows, strict=True):
        Console().print(_table(f"{one.said} against {first.said}, windows of {tokens} tokens", found))


def _table(title: str, rows: "list[Divergence]") -> Table:
    def cells(row: "Divergence") -> list[str]:
        near, shares = (said(row.kl), said(row.p99, 3)), said(row.top1, 2, percent=True)
        numbers = (*near, shares, said(row.other, 3), said(row.base, 3), said(row.ratio))
        return [row.text, f"{row.tokens:,}", *(number.replace(" ± ", "\n±\u00a0") for number in numbers)]

    heads = ("text", "tokens", "mean KL", "KL p99", "top-1", "perplexity", "base's", "ratio")
    style = {"caption": NOTE, "box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    return table(heads, map(cells, rows), title=title, **style)


def _records(others: "list[Plain]", rows: "list[list[Divergence]]") -> list[dict[str, Any]]:
    return [
        {"model": one.name, "kept": one.kept} | row._asdict()
        for one, found in zip(others, rows, strict=True)
        for row in found
    ]


def _measures(others: "list[Plain]", rows: "list[list[Divergence]]") -> "list[Measure]":
    from headrace.bench.result import Measure

    return [
        Measure(f"{one.said}: {row.text}: {name}", value.value, unit, better, abs(value.error / value.value))
        for one, found in zip(others, rows, strict=True)
        for row in found
        for name, value, unit, better in (
            ("KL", row.kl, "nats", "lower"),
            ("KL p99", row.p99, "nats", "lower"),
            ("top-1", row.top1, "share", "higher"),
            ("perplexity", row.other, "perplexity", "lower"),
        )
        if value.value
    ]
