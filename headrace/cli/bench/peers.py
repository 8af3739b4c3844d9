"""Compares this engine with others on this machine."""

import json as text_of
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from headrace.base.config import Config, values
from headrace.base.errors import Refused
from headrace.base.hardware import cores
from headrace.bench.workloads import Workload, check, workload
from headrace.cli._knobs import Engine, EngineFlags
from headrace.cli._print import table, tell
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._ending import unwound
from headrace.cli.bench._report import FileFlags, Files
from headrace.engine.request import SamplingParams

if TYPE_CHECKING:
    from headrace.bench.peers import Peer, Race

SHARED_GPU, VLLM_CPU = 0.9, 0.4
"""Part of a GPU that all engines together take, as they are all loaded while they wait for their turn; and part of a
CPU's memory that vLLM may take, which would take nearly all and refuse to start if others have some."""


def run(
    workloads: Annotated[list[str] | None, Parameter(name="WORKLOAD", negative=())] = None,
    /,
    *,
    vllm: Path | None = None,
    llama_cpp: Path | None = None,
    vllm_options: str = "{}",
    shape: str | None = None,
    rounds: int = 5,
    temperature: float = 0.0,
    files: FileFlags = Files(),
    engine: EngineFlags = Engine(),
) -> None:
    """Compare with other engines: the same token ids, in turns, in one run on this machine; ratios with their spread.

    Each engine runs in a process of its own that is stopped while others have their turn. A peer needs an environment
    of its own; give the path of its Python. vLLM gets a GGUF model unpacked to bfloat16; llama.cpp needs the GGUF.
    On a GPU the engines share its memory in equal parts.

    Parameters
    ----------
    workloads
        names of workloads as in `bench throughput`; single if none is named
    vllm
        the Python of an environment with vLLM, such as PEERS/vllm/bin/python
    llama_cpp
        the Python of an environment with llama-cpp-python
    vllm_options
        arguments of vLLM's LLM as JSON, such as '{"max_model_len": 4096}'
    shape
        a real model's shape with random weights instead of a model, such as llama-3.1-8b
    rounds
        how often each engine runs each workload; medians count
    temperature
        of the sampling; 0 takes the likeliest token, which is all that llama.cpp is asked for
    """
    at_least(1, rounds=rounds)
    SamplingParams(temperature=temperature)  # what cannot be is refused before anything is started
    names = workloads or ["single"]
    check(names)
    report = files.begin("peers")
    _check_peers(vllm, llama_cpp, greedy_gguf=shape is None and not temperature)
    options = _options(vllm_options)
    with unwound(), ExitStack() as open_things:
        folder = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        peers = _peers(engine.config, {"vllm": vllm, "llama-cpp": llama_cpp}, shape, options, folder)
        peers = [replace(peer, settings={"temperature": temperature, **peer.settings}) for peer in peers]
        races, facts = _run(peers, names, rounds, open_things)
    measures = [measure for race in races for measure in race.measures()]
    settings = {"temperature": temperature, "rounds": rounds, "engines": facts}
    settings["model"] = shape or engine.config.model.path
    report.show(settings, measures, facts["headrace"].get("gpu"), _table(races, facts))


def _check_peers(vllm: Path | None, llama_cpp: Path | None, greedy_gguf: bool) -> None:
    if vllm is None and llama_cpp is None:
        raise Refused(
            "no peer is given", hint="give --vllm or --llama-cpp: the Python of an environment that has it"
        )
    if llama_cpp is not None and not greedy_gguf:
        raise Refused(
            "llama.cpp is compared on a GGUF file and with temperature 0 only",
            param="llama_cpp",
            hint="leave out --llama-cpp, or --shape and --temperature",
        )


def _options(text: str) -> dict[str, Any]:
    try:
        said = text_of.loads(text)
    except ValueError as fault:
        raise Refused(f"--vllm-options is not JSON: {fault}", param="vllm_options") from fault
    if not isinstance(said, dict):
        raise Refused("--vllm-options is no JSON object", param="vllm_options")
    return said


def _peers(
    config: Config, pythons: dict[str, Path | None], shape: str | None, given: dict[str, Any], folder: Path
) -> "list[Peer]":
    """The engines with what each is to load; we first."""
    import torch

    from headrace.bench import peers
    from headrace.bench.peers import OURS, Peer
    from headrace.bench.shapes import shaped
    from headrace.checkpoint.hub import find

    for engine, python in pythons.items():
        if python is not None:
            peers.check(engine, python)
    if shape is None:
        model = find(config.model.path)
    else:
        config = shaped(config, shape, folder / "shape")
        model = Path(config.model.path)
    options = {"gpu_memory_utilization": VLLM_CPU} | given
    on_gpu = config.model.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        share = round(SHARED_GPU / (1 + sum(python is not None for python in pythons.values())), 3)
        config = replace(config, memory=replace(config.memory, share=config.memory.share or share))
        options = options | {"gpu_memory_utilization": given.get("gpu_memory_utilization", share)}
    found = [Peer(OURS, Path(sys.executable), {"knobs": values(config)})]
    if (python := pythons["vllm"]) is not None:
        theirs = model
        if model.suffix == ".gguf":
            from headrace.bench.unpack import unpack

            theirs = unpack(model, folder / "unpacked")
        usual: dict[str, Any] = {"load_format": "dummy"} if shape else {}
        if config.model.max_len is not None:
            usual["max_model_len"] = config.model.max_len
        found.append(Peer("vllm", python, {"model": str(theirs), "options": usual | options}))
    if (python := pythons["llama-cpp"]) is not None:
        found.append(Peer("llama-cpp", python, _llama(model, config)))
    # On a GPU those who wait take nothing from the others, and some watch their own clock.
    return [replace(peer, hold=not on_gpu) for peer in found]


def _llama(model: Path, config: Config) -> dict[str, Any]:
    if model.suffix != ".gguf":
        raise Refused(f"llama.cpp reads GGUF files only; {model} is none", param="llama_cpp")
    from headrace.checkpoint.config import read_config

    return {
        "model": str(model),
        "threads": config.model.threads or cores(),
        "vocab": int(read_config(model)["vocab_size"]),
    }


def _run(
    peers: "list[Peer]", names: list[str], rounds: int, open_things: ExitStack
) -> "tuple[list[Race], dict[str, Any]]":
    from headrace.bench.peers import Contestant, race

    contestants: list[Contestant] = []
    for peer in peers:
        tell(f"starting {peer.engine}")
        contestants.append(open_things.enter_context(Contestant(peer)))
    facts = {c.peer.engine: c.facts for c in contestants}
    vocab, gpu = facts["headrace"]["vocab"], facts["headrace"].get("gpu")
    works: list[Workload] = [workload(name, vocab, gpu is not None) for name in names]
    return race(contestants, works, rounds, vocab, tell), facts


def _table(races: "list[Race]", facts: dict[str, Any]) -> Table:
    from statistics import median

    from headrace.bench.peers import OURS
    from headrace.bench.result import spread

    others = [f"{engine} {said['version']}" for engine, said in facts.items() if engine != OURS]
    heads = ("workload", "engine", "seconds", "out tok/s", "tok/s", "we are faster by")
    made = table(heads, (), words=(0, 1), title=f"against {' and '.join(others)}")
    for race in races:
        tokens = race.work.tokens_in + race.work.tokens_out
        for engine, seconds in race.seconds.items():
            middle = median(seconds)
            ratio = ""
            if engine != OURS:
                found = race.ratios(engine)
                ratio = f"{median(found):.2f} x ({min(found):.2f} to {max(found):.2f})"
            made.add_row(
                race.work.name if engine == OURS else "",
                engine,
                f"{middle:.3f} ±{spread(seconds):.0%}",
                f"{race.work.tokens_out / middle:,.1f}",
                f"{tokens / middle:,.1f}",
                ratio,
                end_section=engine == list(race.seconds)[-1],
            )
    return made
