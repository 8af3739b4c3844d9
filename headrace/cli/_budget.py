"""`headrace optimize` with a budget: measures what each layer suffers, picks schemes, makes the model, checks it."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from headrace.base.config import knob
from headrace.base.errors import Refused
from headrace.cli._load import Meter
from headrace.cli._making import Asked, finished, judged, look_ahead, made

if TYPE_CHECKING:
    from headrace.bench.report_optimize import Point, Story
    from headrace.optimize.budget import Budget, Chosen, Pace
    from headrace.optimize.losses import Sensitivity

TRIES = 4
"""Times that a model is made for a KL, each time with a smaller foreseen one."""
TIGHTER = 0.9
GPU = "h200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A limit that the result must keep, instead of a scheme: each layer gets its own."""

    target_bits: float | None = knob(
        None, "bits per weight of the blocks' linear layers, scales included: the least loss for so many"
    )
    max_kl: float | None = knob(
        None,
        "mean KL from the model, in nats: the least size that keeps it, checked on the texts of the report and made"
        " anew with a smaller one where it is not kept",
    )
    max_latency_ms: float | None = knob(
        None,
        "ms per token of one stream on --device, as `headrace plan` foresees it: the least loss for so many;"
        f" {GPU} where --device names no GPU",
    )
    schemes: str | None = knob(
        None,
        "schemes to pick from, with commas; w4a16,w4a16_g64,w4a16_g32_asym,w8a16 if left out, and fp8 for a latency."
        " A layer may always stay as it is",
    )
    sensitivity_tokens: int | None = knob(
        None, "tokens that are read to measure each layer in each scheme; 1024 if left out"
    )
    sensitivity: Path | None = knob(
        None, "sensitivity.json of an earlier search of this model, or its folder: nothing is measured again"
    )

    @property
    def budgets(self) -> list[str]:
        """Flags of the limits that are given."""
        return self._given("target_bits", "max_kl", "max_latency_ms")

    def _given(self, *names: str) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]

    def check(self) -> None:
        """Raises Refused for flags that do nothing together."""
        others = self._given("schemes", "sensitivity_tokens", "sensitivity")
        if others and not self.budgets:
            raise Refused(
                f"{others[0]} is for a search, and there is no budget",
                param=others[0].strip("-").replace("-", "_"),
                hint="add --target-bits, --max-kl or --max-latency-ms",
            )
        if self.sensitivity is not None and self.sensitivity_tokens is not None:
            raise Refused("--sensitivity was measured already", param="sensitivity_tokens")


def run(asked: Asked, search: Search) -> "Story | None":
    """Measure, pick, make and check. None where it was only to be said what would be done."""
    from headrace.optimize.budget import Budget, choose, chosen_for, forget

    budget = Budget(search.target_bits, search.max_kl, search.max_latency_ms)
    if asked.base.scheme is not None:
        raise Refused(
            f"a scheme for all layers and {search.budgets[0]} are both given",
            param="scheme",
            hint="leave out either; --schemes says what to pick from",
        )
    asked, gpu = _where(asked)
    pace = _pace(asked.model, gpu) if gpu is not None or budget.ms is not None else None
    chosen = chosen_for(asked.out, budget, asked.base, pace)
    made_already = chosen is not None and finished(asked, chosen.recipe, asked.out) is not None
    if chosen is None or not made_already:
        chosen = choose(_sensitivity(asked, search, budget, pace), budget, asked.base, pace)
        _say(asked.console, chosen)
    if asked.dry_run:
        look_ahead(asked, chosen.recipe, asked.out)
        return None
    if budget.kl is not None and asked.trial.texts and not made_already:
        return _kept(asked, chosen, budget.kl, pace)
    story = _made(asked, chosen, asked.out)
    forget(asked.out)
    return story


def _where(asked: Asked) -> tuple[Asked, str | None]:
    """Where it is computed, and the GPU that times are for: --device says either."""
    if asked.device in ("auto", "cpu") or asked.device.startswith("cuda"):
        return asked, None
    return replace(asked, device="auto"), asked.device


def _sensitivity(asked: Asked, search: Search, budget: "Budget", pace: "Pace | None") -> "Sensitivity":
    from headrace.optimize.budget import check
    from headrace.optimize.losses import read
    from headrace.optimize.sensitivity import SCHEMES, TOKENS, measure, study

    names = [name.strip() for name in (search.schemes or "").split(",") if name.strip()]
    if search.schemes is None and budget.ms is not None:
        names = [*SCHEMES, "fp8"]
    if search.sensitivity is not None:
        found = read(search.sensitivity)
        return _checked(asked, found.only(names) if search.schemes is not None else found)
    planned = study(
        asked.model,
        asked.out,
        asked.base,
        schemes=names,
        tokens=TOKENS if search.sensitivity_tokens is None else search.sensitivity_tokens,
        device=asked.device,
        tell=asked.console.print,
    )
    check(planned, budget, asked.base, pace)
    layers = len(planned.places)
    asked.console.print(
        f"{layers} layers are tried in {len(planned.trials) / layers:.1f} schemes each: about "
        f"{planned.seconds / 60:.0f} min, and {planned.disk / 1e6:.0f} MB of disk meanwhile",
        highlight=False,
    )
    with Meter(asked.console, lines=1, clock=True) as meter:
        found = measure(planned, asked.fresh, meter.report)
    return found.only([*names, "none"]) if names and "none" in names else found


def _checked(asked: Asked, found: "Sensitivity") -> "Sensitivity":
    """Raises Refused where it is another model's."""
    from headrace.optimize.job import look

    plan = look(asked.model, asked.out, replace(asked.base, scheme="none"), asked.device).plan
    if strange := [name for group in found.groups for name in group.names if name not in plan]:
        raise Refused(
            f"the sensitivity was measured on {found.model}, which has {strange[0]}; {asked.model} has not",
            param="sensitivity",
            hint="measure again: leave --sensitivity out",
        )
    return found


def _pace(model: str, device: str | None) -> "Pace":
    """How fast a GPU is."""
    from headrace.checkpoint.config import read_config
    from headrace.checkpoint.hub import find
    from headrace.optimize.budget import Pace
    from headrace.plan.anatomy import dissect
    from headrace.plan.efficiency import engine
    from headrace.plan.gpus import gpu
    from headrace.plan.mixed import mixed
    from headrace.plan.options import Option
    from headrace.plan.workload import Workload

    anatomy = dissect(model, {**read_config(find(model)), "quantization_config": None})
    work = Workload(min(1000, anatomy.max_len // 2), min(300, anatomy.max_len // 4), 1)
    made = mixed(Option(anatomy, gpu(device or GPU), engine("headrace"), work))

    return Pace(1e3 * made.rest, lambda *layer: 1e3 * made.seconds(*layer), made.setup.gpu.name)


def _say(console: Console, chosen: "Chosen") -> None:
    from headrace.optimize.budget import shown

    timed = chosen.taken.ms is not None
    table = Table(box=None, pad_edge=False)
    for heading in ("", "bits per weight", "KL foreseen", *(["ms per token"] if timed else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [("taken" if spot == chosen.taken else "", spot) for spot in shown(chosen)]
    rows += [(f"all {name}", spot) for name, spot in chosen.uniform.items()]
    for label, spot in sorted(rows, key=lambda row: (row[1].bits, -row[1].kl)):
        row = [label, f"{spot.bits:.3f}", f"{spot.kl:.4g}"]
        table.add_row(*row, *([f"{spot.ms:.3f}"] if spot.ms is not None else []))
    console.print(table)
    said = ", ".join(f"{count} in {name}" for name, count in Counter(chosen.taken.schemes).most_common())
    console.print(f"of {len(chosen.taken.schemes)} layers {said}", highlight=False)


def _made(asked: Asked, chosen: "Chosen", out: Path) -> "Story":
    """The model in `out`, with its report."""
    from headrace.optimize.budget import beside

    outcome = made(asked, chosen.recipe, out, beside(chosen))
    return judged(asked, outcome, chosen.found.table(), _points(chosen))


def _points(chosen: "Chosen") -> "list[Point]":
    """For the report: what is of the least loss for its size; a loss of nothing has no place on its scale."""
    from headrace.bench.report_optimize import Point

    points: list[Point] = []
    for spot in sorted(chosen.frontier, key=lambda spot: spot.bits):
        if spot.kl > 0 and (not points or spot.kl < points[-1].loss):
            points.append(Point(spot.bits, spot.kl))
    taken = chosen.taken
    return [*points, Point(taken.bits, taken.kl, True)] if taken.kl > 0 else points


# -- a KL that must be kept ---------------------------------------------------------------------------------------


def _kept(asked: Asked, first: "Chosen", most: float, pace: "Pace | None") -> "Story":
    """Make it, measure it, and make it anew with a smaller foreseen KL until the measured one is `most` or less.

    It comes to its place once it is. What was tried is remembered, so that a killed search does not try it again.
    """
    from headrace.bench.judge import save
    from headrace.optimize.budget import Budget, choose, forget
    from headrace.optimize.sensitivity import folder_for
    from headrace.optimize.work import folder_of, write_json

    folder = folder_of(folder_for(asked.out))
    folder.mkdir(parents=True, exist_ok=True)
    file, same = folder / "tries.json", _same(asked, first)
    tries = [] if asked.fresh else _tries(file, same)
    while len(tries) < TRIES:
        bound = _bound(tries, most)
        chosen = first if not tries else choose(first.found, Budget(kl=bound), asked.base, pace)
        at = folder / f"try-{len(tries)}"
        if finished(asked, chosen.recipe, at) is None:
            shutil.rmtree(at, ignore_errors=True)
        story = _made(asked, replace(chosen, budget=first.budget), at)
        kl = story.quality[-1].kl
        said = f"foreseen {chosen.taken.kl:.4g}, measured {kl}, allowed {most:g}"
        asked.console.print(f"KL: {said}, {chosen.taken.bits:.3f} bits", highlight=False)
        if kl.value <= most:
            story = replace(story, outcome=replace(story.outcome, out=asked.out))
            save(story, at)
            at.rename(asked.out)
            forget(asked.out)
            return story
        shutil.rmtree(at)
        tries.append([chosen.taken.kl, kl.value])
        write_json(file, {"same": same, "tries": tries})
    raise Refused(
        f"a measured KL of {most:g} was not reached in {TRIES} tries; the last had {tries[-1][1]:.4g}",
        param="max_kl",
        hint="allow a larger --max-kl, or finer --schemes such as w8a16",
    )


def _bound(tries: list[list[float]], most: float) -> float:
    """What may be foreseen next: as much less as the last one measured was too much, and a little less again."""
    if not tries:
        return most
    foreseen, measured = tries[-1]
    return foreseen * TIGHTER * most / measured


def _same(asked: Asked, first: "Chosen") -> dict[str, Any]:
    """What earlier tries must have had in common with these to count."""
    trial = {"texts": list(asked.trial.texts), "tokens": asked.trial.tokens, "windows": asked.trial.windows}
    return {"recipe": first.recipe.as_object(), "trial": trial, "max_kl": first.budget.kl}


def _tries(file: Path, same: dict[str, Any]) -> list[list[float]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["tries"] if found["same"] == json.loads(json.dumps(same)) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
