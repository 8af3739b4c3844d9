"""What the commands that judge models share: their texts, their models, progress, and the JSON they print."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from headrace.base.config import Config, Model
from headrace.base.errors import Refused
from headrace.cli._load import Meter, load

if TYPE_CHECKING:
    from headrace.api.llm import LLM
    from headrace.bench.estimate import Estimate
    from headrace.bench.plain import Plain
    from headrace.bench.result import Result

KNOWN = ("gsm8k", "hamlet", "humaneval")
"""Texts that are read if none is named."""

TextFlag = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]
JsonFlag = Annotated[bool, Parameter(negative=())]


def read_texts(names: Sequence[str], tokens: int, windows: int) -> dict[str, str]:
    """Texts by name, fetched where they are known ones. Raises Refused for settings that cannot be."""
    if tokens < 1:
        raise Refused(f"--tokens is {tokens}; expected at least 1", param="tokens")
    if windows < 0:
        raise Refused(f"--windows is {windows}; expected 0 or more", param="windows")
    if not names:
        raise Refused("--text is empty", param="text", hint=f"give a text file, or one of {', '.join(KNOWN)}")
    from headrace.bench import texts

    return {name: texts.read(name) for name in names}


def named(models: Sequence[str], config: Config) -> list[str]:
    """The models given as arguments, or that of --model. Raises Refused for both."""
    if not models:
        return [config.model.path]
    if config.model.path != Model().path:
        raise Refused("models are given as arguments and with --model", param="model", hint="leave one out")
    return list(models)


def open_plain(config: Config) -> "Plain":
    """A model without an engine, with the progress of loading on standard error."""
    from headrace.bench import plain

    with metered() as meter:
        return plain.open_plain(config, meter.tell)


@contextmanager
def metered() -> Iterator[Meter]:
    """Progress on standard error; gone at the end."""
    meter = Meter(Console(stderr=True))
    try:
        yield meter
    finally:
        meter.stop()


def said(estimate: "Estimate", digits: int = 4, percent: bool = False) -> str:
    """An estimate with its standard error, for a table."""
    scale, unit = (100, "%") if percent else (1, "")
    error = f" ± {estimate.error * scale:.{digits}f}" if isfinite(estimate.error) else ""
    return f"{estimate.value * scale:.{digits}f}{unit}{error}"


def write_json(result: "Result", rows: Sequence[Any]) -> None:
    """A benchmark's result with what was found, row by row, on standard output. What is not a number is null."""
    from headrace.bench.result import as_json

    json.dump(as_json(asdict(result) | {"rows": list(rows)}), sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def one_by_one(models: Sequence[str], config: Config) -> "Iterator[LLM]":
    """Each model in an engine, only one of them in memory at a time; the caller keeps none.

    Several are loaded as they are judged (`plain.as_judged`), a single one as it would be served.
    """
    from headrace.base.config import replace_dotted
    from headrace.bench.plain import as_judged, forget

    for n, model in enumerate(models):
        if len(models) == 1:
            chosen = replace_dotted(config, {"model.path": model})
        else:
            chosen = as_judged(config, model, config.model.quantization if n else "auto")
        yield load(chosen)
        forget()
