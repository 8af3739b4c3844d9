"""From the flags of `headrace plan` to what is planned: an option, its efficiencies, and what a search gave."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from headrace.base.errors import Refused
from headrace.base.home import expanded
from headrace.cli.bench._checks import at_least
from headrace.cli.plan import Setup, Wanted
from headrace.plan import calibrate, find, search
from headrace.plan.anatomy import dissect
from headrace.plan.efficiency import Efficiency, engine
from headrace.plan.gpus import GPUS, Gpu, gpu, read_table
from headrace.plan.options import Option, check, default_scheme
from headrace.plan.scheme import scheme
from headrace.plan.workload import Draft, limits, workload


class Fit(NamedTuple):
    """Measured runs, and the efficiencies before and after they were fitted to them."""

    samples: list[calibrate.Sample]
    before: Efficiency
    after: Efficiency


class Planned(NamedTuple):
    """What was asked for, or the best of what was searched for. `choices`: all that a search gave, best first."""

    option: Option
    choices: list[search.Choice]
    fit: Fit | None


def read(model: str, setup: Setup, wanted: Wanted, results: Sequence[Path]) -> Planned:
    """What to plan. Raises a Fault for flags that make no sense, or not together."""
    at_least(0, price=setup.price)
    at_least(0.001, qps=wanted.qps)
    at_least(2, max_len=setup.max_len)
    known = GPUS if setup.gpus_file is None else read_table(setup.gpus_file)
    devices = _devices(setup.gpu, known, wanted.anything)
    anatomy = dissect(_short(model), _settings(model))
    option = Option(
        anatomy,
        devices[0],
        engine(setup.engine),
        workload(setup.workload)._replace(draft=_draft(setup.draft)),
        gpus=1 if setup.gpus is None else setup.gpus,
        scheme=default_scheme(anatomy, devices[0]) if setup.scheme is None else scheme(setup.scheme).name,
        kv=setup.kv,
        max_len=setup.max_len,
        price=setup.price,
    )
    check(option)
    fit = _fit(option, results, known)
    option = option if fit is None else replace(option, reach=fit.after)
    choices = _choices(option, devices, setup, wanted) if wanted.anything else []
    return Planned(choices[0].option if choices else option, choices, fit)


def _devices(names: str | None, known: dict[str, Gpu], several: bool) -> list[Gpu]:
    if names is None:
        return [d for d in known.values() if d.kind == "gpu" and d.price] if several else [known["h200"]]
    found = [gpu(name, known) for name in filter(None, (part.strip() for part in names.split(",")))]
    if not found:
        raise Refused("--gpu names no device", param="gpu")
    if len(found) > 1 and not several:
        raise Refused(
            "several devices are given", param="gpu", hint="name one, or say with --slo what must hold"
        )
    return found


def _settings(model: str) -> dict[str, Any]:
    path = expanded(model)
    if path.suffix == ".gguf" and path.is_file():
        from headrace.checkpoint.config import read_config  # loads torch: only for this

        return read_config(path)
    return find.settings(model)


def _short(model: str) -> str:
    """A model's name for headings."""
    path = expanded(model)
    if not path.exists():
        return model
    path = path.resolve()
    if path.name == "config.json":
        return path.parent.name
    return path.stem if path.is_file() else path.name


def _draft(text: str | None) -> Draft | None:
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


def _fit(option: Option, results: Sequence[Path], known: dict[str, Gpu]) -> Fit | None:
    found = [sample for file in results for sample in calibrate.read(file, option, known)]
    if not found:
        return None
    same = [sample for sample in found if sample.setup.gpu.kind == option.gpu.kind]
    if not same:
        raise Refused(
            f"these results are of another kind of device than {option.gpu.name}",
            param="calibrate",
            hint="name the device they were measured on with --gpu",
        )
    return Fit(same, option.efficiency, calibrate.fit(same, option.efficiency))


def _choices(option: Option, devices: list[Gpu], setup: Setup, wanted: Wanted) -> list[search.Choice]:
    schemes = [option.scheme] if setup.scheme else list(dict.fromkeys([option.scheme, "fp8", "w4a16"]))
    counts = search.COUNTS if setup.gpus is None else (setup.gpus,)
    found = limits(wanted.slo) if wanted.slo else []
    return search.cheapest(option, devices, schemes, found, wanted.qps, counts)
