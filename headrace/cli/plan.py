"""Predicts what a model needs and how fast it will be on devices one does not have."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from headrace.base.config import knob
from headrace.cli._print import write_json

if TYPE_CHECKING:
    from headrace.cli._plan_read import Planned
    from headrace.plan.advice import Advice

SHOWN = 8
"""Configurations shown of those that hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the model would run on, and how."""

    gpu: str | None = knob(
        None,
        "the device: h200 (if left out), h100, b200, a100-80gb, l40s, l4, a10g, mi300x, rtx-4090, rtx-5090, cpu, ..."
        " With --slo or --qps also several, with commas, or all if left out",
    )
    gpus: int | None = knob(
        None, "devices that share the model; 1 if left out, or 1, 2, 4 and 8 with --slo or --qps"
    )
    scheme: str | None = knob(
        None,
        "how weights are kept: bf16, fp8, int8, w8a16, w4a16, nvfp4, mxfp4, ...; as the checkpoint is, if left out",
    )
    kv: str = knob("auto", "type of the KV cache: auto, bf16, fp8")
    workload: str = knob(
        "in=1000,out=300,concurrency=64",
        "what is asked: in=TOKENS,out=TOKENS,concurrency=REQUESTS,prefix=TOKENS that all prompts have in common",
    )
    max_len: int | None = knob(None, "most tokens of one request; default: what the model was made for")
    draft: str | None = knob(None, "speculation: TOKENS,ACCEPTANCE, as in 3,0.6")
    engine: str = knob("headrace", "whose efficiencies: headrace or vllm")
    price: float | None = knob(None, "US dollars per hour of one device, instead of the table's")
    gpus_file: Path | None = knob(
        None, 'JSON file with devices of your own, or with other prices: {"h100": {"price": 2.1}}'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What must hold of it."""

    slo: str | None = knob(
        None,
        'limits in seconds that must hold: ttft, ttft_p99, tpot, e2e, as in "ttft<0.5,tpot<0.05". Gives the cheapest'
        " configuration that holds them",
    )
    qps: float | None = knob(
        None, "requests per second that must be served: gives the cheapest configuration, replicas included"
    )

    @property
    def anything(self) -> bool:
        """Whether a configuration is to be searched for."""
        return self.slo is not None or self.qps is not None


def run(
    model: str,
    /,
    *,
    setup: Annotated[Setup, Parameter(name="*")] = Setup(),
    wanted: Annotated[Wanted, Parameter(name="*")] = Wanted(),
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
    calibrate
        result files of `headrace bench throughput` to fit the efficiencies to; prints the error against them
    goal
        what advice is sorted by
    html
        file to write a page with pictures to
    json
        print JSON instead of tables
    """
    from headrace.bench.files import write
    from headrace.cli import _plan_read, _plan_tables
    from headrace.plan.advice import advise
    from headrace.plan.page import page

    planned = _plan_read.read(model, setup, wanted, calibrate or [])
    advice = advise(planned.option, goal)
    if html is not None:
        write(html, page(planned.option, advice, planned.choices[:SHOWN], goal), "html")
    if json:
        write_json(_facts(planned, advice))
    else:
        _plan_tables.show(planned, advice, goal)


def _facts(planned: "Planned", advice: "list[Advice]") -> dict[str, Any]:
    from headrace.plan import words

    option, made = planned.option, planned.option.forecast
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
    if planned.choices:
        found["choices"] = [words.choice_facts(c) for c in planned.choices[:SHOWN]]
    if planned.fit is not None:
        fit = planned.fit
        samples = [
            {"name": s.name, "seconds": s.seconds, "error_before": s.error(fit.before), "error": s.error(fit.after)}
            for s in fit.samples
        ]  # fmt: skip
        found["calibration"] = {"efficiency": dict(fit.after.values), "samples": samples}
    return found
