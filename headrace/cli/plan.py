"""Predicts what a model needs and how fast it will be on devices one does not have."""

import json as text_of
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from headrace.base.errors import Refused

if TYPE_CHECKING:
    from headrace.plan.calibrate import Sample
    from headrace.plan.gpus import Gpu
    from headrace.plan.options import Option
    from headrace.plan.search import Choice
    from headrace.plan.workload import Draft

SHOWN = 8
"""Configurations shown of those that hold."""


def run(
    model: str,
    /,
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    scheme: str | None = None,
    kv: str = "auto",
    workload: str = "in=1000,out=300,concurrency=64",
    max_len: int | None = None,
    draft: str | None = None,
    engine: str = "headrace",
    price: float | None = None,
    gpus_file: Path | None = None,
    slo: str | None = None,
    qps: float | None = None,
    calibrate: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative=())] = None,
    goal: Literal["cost", "throughput", "latency"] = "cost",
    html: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Predict what fits, how fast it will be, what it costs and what to change, from a model's config.json alone.

    Needs no GPU and no weights. The numbers come from arithmetic with measured efficiencies; docs/plan.md has the
    formulas and how far they are from measured runs.

    Parameters
    ----------
    model
        a folder with config.json, a config.json, org/name of the hub, or a well-known shape such as llama-3.1-8b
    gpu
        the device: h200 (if left out), h100, b200, a100-80gb, l40s, l4, a10g, mi300x, rtx-4090, rtx-5090, cpu, ...
        With --slo or --qps also several, with commas, or all if left out
    gpus
        devices that share the model; 1 if left out, or 1, 2, 4 and 8 with --slo or --qps
    scheme
        how weights are kept: bf16, fp8, int8, w8a16, w4a16, nvfp4, mxfp4, ...; as the checkpoint is, if left out
    kv
        type of the KV cache: auto, bf16, fp8
    workload
        what is asked: in=TOKENS,out=TOKENS,concurrency=REQUESTS,prefix=TOKENS that all prompts have in common
    max_len
        most tokens of one request; default: what the model was made for
    draft
        speculation: TOKENS,ACCEPTANCE, as in 3,0.6
    engine
        whose efficiencies: headrace or vllm
    price
        US dollars per hour of one device, instead of the table's
    gpus_file
        JSON file with devices of your own, or with other prices: {"h100": {"price": 2.1}}
    slo
        limits in seconds that must hold: ttft, ttft_p99, tpot, e2e, as in "ttft<0.5,tpot<0.05". Gives the
        cheapest configuration that holds them
    qps
        requests per second that must be served: gives the cheapest configuration, replicas included
    calibrate
        result files of `headrace bench throughput` to fit the efficiencies to; prints the error against them
    goal
        what advice is sorted by
    html
        file to write a page with pictures to
    json
        print JSON instead of tables
    """
    from headrace.plan.advice import advise
    from headrace.plan.gpus import GPUS, read_table

    known = GPUS if gpus_file is None else read_table(gpus_file)
    _check_numbers(price, qps, max_len)
    devices = _devices(gpu, known, slo is not None or qps is not None)
    option = _option(model, devices[0], engine, workload)
    option = replace(
        option,
        gpus=1 if gpus is None else gpus,
        scheme=_scheme(option, scheme),
        kv=kv,
        max_len=max_len,
        price=price,
        work=option.work._replace(draft=_draft(draft)),
    )
    samples = _calibrated(option, calibrate or [], known)
    option = replace(option, reach=samples[1]) if samples else option
    choices = _choices(option, devices, (scheme, gpus), slo, qps)
    option = choices[0].option if choices else option
    from headrace.plan.options import check

    check(option)
    advice = advise(option, goal)
    if html is not None:
        _write(html, option, advice, choices, goal)
    if json:
        text_of.dump(_facts(option, advice, choices, samples), sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    from headrace.cli import _plan_tables

    _plan_tables.show(option, advice, choices, samples, goal)


def _check_numbers(price: float | None, qps: float | None, max_len: int | None) -> None:
    for name, value, low in (("price", price, 0.0), ("qps", qps, 1e-9), ("max-len", max_len, 2)):
        if value is not None and not low <= value < float("inf"):
            raise Refused(f"--{name} is {value}; expected a number of {low:g} or more", param=name)


def _devices(names: str | None, known: "dict[str, Gpu]", search: bool) -> "list[Gpu]":
    from headrace.plan.gpus import gpu

    if names is None:
        return [d for d in known.values() if d.kind == "gpu" and d.price] if search else [known["h200"]]
    found = [gpu(name, known) for name in filter(None, (part.strip() for part in names.split(",")))]
    if not found:
        raise Refused("--gpu names no device", param="gpu")
    if len(found) > 1 and not search:
        raise Refused(
            "several devices are given", param="gpu", hint="name one, or say with --slo what must hold"
        )
    return found


def _option(model: str, device: "Gpu", engine: str, workload: str) -> "Option":
    from headrace.plan.anatomy import dissect
    from headrace.plan.efficiency import engine as engine_of
    from headrace.plan.options import Option
    from headrace.plan.workload import workload as read

    return Option(dissect(_short(model), _settings(model)), device, engine_of(engine), read(workload))


def _settings(model: str) -> dict[str, Any]:
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        from headrace.checkpoint.config import read_config  # loads torch: only for this

        return read_config(path)
    from headrace.plan.find import settings

    return settings(model)


def _short(model: str) -> str:
    """A model's name for headings."""
    path = Path(model).expanduser()
    if path.exists():
        whole = path.resolve()
        return (
            whole.parent.name
            if whole.name == "config.json"
            else whole.stem
            if whole.is_file()
            else whole.name
        )
    return model


def _scheme(option: "Option", name: str | None) -> str:
    from headrace.plan.options import default_scheme
    from headrace.plan.scheme import scheme

    return default_scheme(option.anatomy, option.gpu) if name is None else scheme(name).name


def _draft(text: str | None) -> "Draft | None":
    from headrace.plan.workload import Draft

    if text is None:
        return None
    tokens, comma, acceptance = text.partition(",")
    try:
        made = Draft(int(tokens), float(acceptance))
    except ValueError:
        made = Draft(0, 0.0)
    if not comma or not 1 <= made.tokens <= 64 or not 0 < made.acceptance <= 1:
        raise Refused(
            f"--draft is {text!r}; expected tokens from 1 to 64 and a probability",
            param="draft",
            hint="as in 3,0.6",
        )
    return made


def _calibrated(option: "Option", files: Sequence[Path], known: "dict[str, Gpu]") -> "Any":
    """(samples, efficiencies fitted to them, efficiencies before), or None."""
    from headrace.plan.calibrate import fit, read

    found: list[Sample] = [sample for file in files for sample in read(file, option, known)]
    if not found:
        return None
    same = [sample for sample in found if sample.setup.gpu.kind == option.gpu.kind]
    if not same:
        raise Refused(
            f"these results are of another kind of device than {option.gpu.name}",
            param="calibrate",
            hint="name the device they were measured on with --gpu",
        )
    return same, fit(same, option.efficiency), option.efficiency


def _choices(
    option: "Option",
    devices: "list[Gpu]",
    fixed: tuple[str | None, int | None],
    slo: str | None,
    qps: float | None,
) -> "list[Choice]":
    if slo is None and qps is None:
        return []
    from headrace.plan import search
    from headrace.plan.options import check
    from headrace.plan.workload import limits

    scheme, gpus = fixed
    check(option)
    schemes = [option.scheme] if scheme else list(dict.fromkeys([option.scheme, "fp8", "w4a16"]))
    counts = search.COUNTS if gpus is None else (gpus,)
    return search.cheapest(option, devices, schemes, search.Wanted(limits(slo) if slo else [], qps, counts))


def _write(
    file: Path, option: "Option", advice: Sequence[Any], choices: "Sequence[Choice]", goal: str
) -> None:
    from headrace.plan.page import page

    try:
        file.write_text(page(option, advice, choices[:SHOWN], goal), encoding="utf-8")
    except OSError as fault:
        raise Refused(f"{file} cannot be written: {fault.strerror}", param="html") from fault


def _facts(
    option: "Option", advice: Sequence[Any], choices: "Sequence[Choice]", samples: Any
) -> dict[str, Any]:
    from headrace.plan import words

    made = option.forecast
    found: dict[str, Any] = {
        **words.facts(option),
        "workload": {
            "in": option.work.tokens_in,
            "out": option.work.tokens_out,
            "concurrency": option.work.concurrency,
            "prefix": option.work.shared,
        },
        "fits": made is not None,
        "verdict": words.verdict(option, made),
        "memory": words.memory_facts(option.memory),
        "forecast": words.forecast_facts(made),
        "advice": [words.advice_facts(a) for a in advice],
    }
    if choices:
        found["choices"] = [words.choice_facts(c) for c in choices[:SHOWN]]
    if samples:
        measured, fitted, before = samples
        found["calibration"] = {
            "efficiency": fitted.values(),
            "samples": [
                {
                    "name": s.name,
                    "seconds": s.seconds,
                    "error_before": s.error(before),
                    "error": s.error(fitted),
                }
                for s in measured
            ],
        }
    return found
