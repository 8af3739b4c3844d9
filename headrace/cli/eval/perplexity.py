"""Measures how well a model predicts text."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from headrace.base.errors import Refused
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import load

if TYPE_CHECKING:
    from headrace.api.llm import LLM
    from headrace.bench.perplexity import Perplexity

KNOWN = ("gsm8k", "hamlet", "humaneval")


def run(
    *,
    text: Annotated[list[str], Parameter(negative=(), consume_multiple=True)] = list(KNOWN),  # noqa: B006 - never changed
    tokens: int = 1024,
    windows: int = 1,
    json: Annotated[bool, Parameter(negative=())] = False,
    engine: EngineFlags = Engine(),
) -> None:
    """Measure how well a model predicts text: its perplexity, with the standard error. Lower is better.

    Compare models by it only if they have the same tokenizer.

    Parameters
    ----------
    text
        text files, or gsm8k, hamlet, humaneval, which are fetched with pip (3 MB in all)
    tokens
        tokens predicted per window; a window is read at once, beginning with one token that nothing predicts
    windows
        how many windows from the beginning of each text; 0: all of it
    json
        print JSON instead of a table
    """
    if tokens < 1:
        raise Refused(f"--tokens is {tokens}; expected at least 1", param="tokens")
    if windows < 0:
        raise Refused(f"--windows is {windows}; expected 0 or more", param="windows")
    if not text:
        raise Refused("--text is empty", param="text", hint=f"give a text file, or one of {', '.join(KNOWN)}")
    from headrace.bench import perplexity, texts

    read = {name: texts.read(name) for name in text}
    llm = load(engine.config)
    found = [perplexity.measure(llm, said, name, tokens, windows or None) for name, said in read.items()]
    if json:
        _write_json(llm, tokens, windows, found)
    else:
        Console().print(_table(llm, tokens, found))


def _table(llm: "LLM", tokens: int, found: "list[Perplexity]") -> Table:
    table = Table(
        title=f"{llm.plan.model}, {str(llm.plan.dtype).removeprefix('torch.')}, windows of {tokens} tokens"
    )
    table.add_column("text")
    for heading in ("windows", "tokens predicted", "perplexity", "standard error"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(one.text, str(one.windows), str(one.tokens), f"{one.value:.3f}", f"{one.error:.3f}")
    return table


def _write_json(llm: "LLM", tokens: int, windows: int, found: "list[Perplexity]") -> None:
    from headrace.base.hardware import probe
    from headrace.bench.result import Measure, Result, commit, versions

    hardware = probe()
    result = Result(
        benchmark="perplexity",
        machine={"cpu": hardware.cpu_name, "cores": hardware.cores},
        versions=versions("headrace", "torch"),
        commit=commit(),
        settings={
            "model": llm.plan.model,
            "dtype": str(llm.plan.dtype).removeprefix("torch."),
            "device": str(llm.plan.device),
            "tokens": tokens,
            "windows": windows,
        },
        measures=[
            Measure(one.text, one.value, "perplexity", "lower", one.error / one.value) for one in found
        ],
    )
    json.dump(asdict(result), sys.stdout, indent=1)
    sys.stdout.write("\n")
