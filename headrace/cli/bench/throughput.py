"""Times named workloads through the whole engine: token ids in, token ids out."""

import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headrace.base.errors import Refused
from headrace.bench.workloads import check, custom, workload
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._load import load
from headrace.cli._print import tell
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._report import FileFlags, Files, facts
from headrace.engine.request import SamplingParams

TOKENS_IN, TOKENS_OUT = 512, 128


def run(
    workloads: Annotated[list[str] | None, Parameter(name="WORKLOAD", negative=())] = None,
    /,
    *,
    shape: str | None = None,
    requests: int | None = None,
    tokens_in: int = TOKENS_IN,
    tokens_out: int = TOKENS_OUT,
    repeats: int = 3,
    temperature: float = 0.8,
    files: FileFlags = Files(),
    engine: EngineFlags = Engine(),
) -> None:
    """Time workloads: all requests are there from the start, answers have fixed lengths, text is not made.

    On a GPU: single, batch32, batch256, mixed, prefill, long, prefix. On a CPU: single, prefill, batch16, mixed64,
    prefix32. The same name is always the same work for a vocabulary; repeats use other tokens of the same lengths.

    Parameters
    ----------
    workloads
        names of workloads; single if none is named
    shape
        a real model's shape with random weights, such as llama-3.1-8b or qwen3-0.6b, instead of a model
    requests
        instead of named workloads: that many requests of --tokens-in and --tokens-out
    tokens_in
        tokens of each prompt
    tokens_out
        tokens of each answer
    repeats
        how often each workload is timed; the best counts, as the second time a step's size comes it is recorded
    temperature
        of the sampling; 0 takes the likeliest token
    """
    at_least(1, repeats=repeats, requests=requests, tokens_in=tokens_in, tokens_out=tokens_out)
    SamplingParams(temperature=temperature)  # what cannot be is refused before a model is loaded
    check(workloads or [])
    report = files.begin("throughput")
    if requests is not None and workloads:
        raise Refused(
            "both workloads and --requests are given", param="requests", hint="leave one of them out"
        )
    if requests is None and (tokens_in, tokens_out) != (TOKENS_IN, TOKENS_OUT):
        raise Refused(
            "--tokens-in and --tokens-out are for --requests; named workloads have lengths of their own",
            param="requests",
            hint="add --requests N",
        )
    from headrace.bench.plain import gpu_name
    from headrace.bench.shapes import shaped
    from headrace.bench.throughput import time_workload

    with tempfile.TemporaryDirectory() as folder:
        llm = load(engine.config if shape is None else shaped(engine.config, shape, Path(folder)))
    vocab, on_gpu = llm.intake.vocab, llm.plan.device.type == "cuda"
    if requests is not None:
        works = [custom(requests, tokens_in, tokens_out, vocab, llm.plan.max_len)]
    else:
        works = [workload(name, vocab, on_gpu) for name in workloads or ["single"]]
    measures = []
    for work in works:
        measures += time_workload(llm, work, repeats, temperature, tell)
    settings = {"temperature": temperature, "repeats": repeats, **facts(llm.plan)}
    settings["model"] = shape or llm.plan.model
    report.show(settings, measures, gpu_name(llm.plan.device))
