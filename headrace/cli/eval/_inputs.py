"""What the commands that judge models share: their texts, their models, progress, and the JSON they print."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from headrace.base.config import Config, Model, replace_dotted
from headrace.base.errors import Refused
from headrace.cli._load import Meter, load
from headrace.cli._print import write_json
from headrace.cli.bench._checks import at_least

if TYPE_CHECKING:
    import torch

    from headrace.api.llm import LLM
    from headrace.bench.estimate import Estimate
    from headrace.bench.plain import Plain
    from headrace.bench.result import Measure
    from headrace.engine.resolve import Plan

T = TypeVar("T")
KNOWN = ("gsm8k", "hamlet", "humaneval")
"""Texts that are read if none is named."""

TextFlag = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]
JsonFlag = Annotated[bool, Parameter(negative=())]


def read_texts(names: Sequence[str], tokens: int, windows: int) -> dict[str, str]:
    """Texts by name, fetched where they are known ones. Raises Refused for settings that cannot be."""
    at_least(1, tokens=tokens)
    at_least(0, windows=windows)
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

    with Meter() as meter:
        return plain.open_plain(config, meter.tell)


def said(estimate: "Estimate", digits: int = 4, percent: bool = False) -> str:
    """An estimate with its standard error, for a table."""
    scale, unit = (100, "%") if percent else (1, "")
    error = f" ± {estimate.error * scale:.{digits}f}" if isfinite(estimate.error) else ""
    return f"{estimate.value * scale:.{digits}f}{unit}{error}"


def write_rows(
    benchmark: str,
    settings: dict[str, Any],
    measures: "list[Measure]",
    device: "torch.device",
    rows: list[Any],
) -> None:
    """A benchmark's result with what was found, row by row, on standard output. What is not a number is null."""
    from headrace.bench.plain import gpu_name
    from headrace.bench.result import Result, as_json

    found = Result.here(benchmark, settings, measures, gpu_name(device))
    write_json(as_json(asdict(found) | {"rows": rows}))


def each_alone(
    models: Sequence[str], config: Config, measure: "Callable[[LLM], T]"
) -> "tuple[list[str], Plan, list[T]]":
    """What each model is called, the plan of the first, and what is measured of each in an engine of its own.

    Only one is in memory at a time. Several are loaded as they are judged (`plain.as_judged`), a single one as it
    would be served.
    """
    from headrace.bench.plain import as_judged, forget, label

    paths = named(models, config)
    plans: list[Plan] = []
    found: list[T] = []
    for n, path in enumerate(paths):
        if len(paths) == 1:
            chosen = replace_dotted(config, {"model.path": path})
        else:
            chosen = as_judged(config, path, config.model.quantization if n else "auto")
        llm = load(chosen)
        found.append(measure(llm))
        plans.append(llm.plan)
        del llm
        forget()
    names = paths if len(paths) == 1 else [label(plan.model, plan.quantization) for plan in plans]
    return names, plans[0], found
