"""Times what structured output costs in throughput."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from headrace.base.config import Config, Model
from headrace.base.errors import Fault, Refused
from headrace.bench.workloads import custom
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import load
from headrace.cli._print import table, tell
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._report import FileFlags, Files, facts
from headrace.engine.grammar import KEPT
from headrace.engine.request import SamplingParams

if TYPE_CHECKING:
    from headrace.bench.forms import Speeds


def run(
    path: Annotated[str | None, Parameter(name="MODEL")] = None,
    /,
    *,
    shape: str | None = None,
    requests: int = 128,
    tokens_in: int = 100,
    tokens_out: int = 128,
    rounds: int = 5,
    temperature: float = 0.8,
    files: FileFlags = Files(),
    engine: EngineFlags = Engine(),
) -> None:
    """Time structured output: requests without a form, with schemas met before, with new schemas, in turns.

    All requests of a run are there from the start, each with a schema of its own; answers have fixed lengths, text is
    not made. With --shape the words are the default model's, if --tokenizer names no others; they may be fewer than
    the shape has.

    Parameters
    ----------
    path
        the model, as for --model
    shape
        a real model's shape with random weights, such as llama-3.1-8b or qwen3-0.6b, instead of a model
    requests
        requests at once, and schemas; at most 256, as many as an engine keeps compiled
    tokens_in
        tokens of each prompt
    tokens_out
        tokens of each answer
    rounds
        how often each of the three is timed, after a round to warm up; medians count
    temperature
        of the sampling; 0 takes the likeliest token
    """
    at_least(1, KEPT, requests=requests)
    at_least(1, tokens_in=tokens_in, tokens_out=tokens_out, rounds=rounds)
    SamplingParams(temperature=temperature)  # what cannot be is refused before a model is loaded
    report = files.begin("forms")
    config = engine.of(path).config
    if shape is not None and config.model.path != Model().path:
        raise Refused("both a model and --shape are given", param="shape", hint="leave one of them out")
    from headrace.bench.forms import measure, measures
    from headrace.bench.plain import gpu_name

    with tempfile.TemporaryDirectory() as folder:
        config = _prepared(config, shape, Path(folder))
        llm = load(config)
    work = custom(requests, tokens_in, tokens_out, llm.intake.vocab, llm.plan.max_len)
    speeds = measure(llm, work, rounds, temperature, tell)
    settings = {"requests": requests, "tokens_in": tokens_in, "tokens_out": tokens_out, "rounds": rounds}
    settings |= {"temperature": temperature, "tokenizer": config.model.tokenizer, **facts(llm.plan)}
    settings["model"] = shape or llm.plan.model
    report.show(settings, measures(speeds), gpu_name(llm.plan.device), _table(speeds))


def _prepared(config: Config, shape: str | None, folder: Path) -> Config:
    """What is to be loaded. Raises Refused without a tokenizer, before anything is."""
    from headrace.bench.shapes import shaped
    from headrace.checkpoint.hub import find

    if shape is None:
        find(config.model.path)  # refused by its own name
        _words(config.model.tokenizer or config.model.path)
        return config
    name = config.model.tokenizer or Model().path
    _words(name)
    config = shaped(config, shape, folder)
    return replace(config, model=replace(config.model, tokenizer=name))


def _words(name: str) -> None:
    """Raises Refused where there are none."""
    from headrace.checkpoint.config import read_tokenizer
    from headrace.checkpoint.hub import find

    try:
        read_tokenizer(find(name))
    except Fault as fault:
        raise Refused(
            f"forms need a tokenizer: {fault.message}",
            param="tokenizer",
            hint="give one with --tokenizer: a known name, a folder, a .gguf file, or a repo id on the hub",
        ) from fault


def _table(speeds: "Speeds") -> Table:
    from statistics import median

    from headrace.bench.forms import NONE, ratio, ratios
    from headrace.bench.result import spread

    made = table(("schemas", "out tok/s", f"against {NONE}"), (), title="forms")
    for kind, found in speeds.items():
        against = ""
        if kind != NONE:
            each = ratios(speeds, kind)
            against = f"{ratio(speeds, kind):.3f} x ({min(each):.3f} to {max(each):.3f})"
        made.add_row(kind, f"{median(found):,.1f} ±{spread(found):.0%}", against)
    return made
