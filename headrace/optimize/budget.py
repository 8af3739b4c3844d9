"""From measured losses and a budget to a recipe: the schemes that keep within it at least loss, and the frontier.

Losses of layers rounded alone are added up; what they make together is measured afterwards.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from headrace.base.errors import Refused
from headrace.base.json_file import read_json
from headrace.optimize.losses import FILE, Group, Sensitivity, read
from headrace.optimize.passes.rtn import Rtn
from headrace.optimize.recipe import NONE, Choice, Recipe
from headrace.optimize.search import Option, Pick, best, sweep
from headrace.optimize.sensitivity import Study, folder_for
from headrace.optimize.work import folder_of
from headrace.quant.schemes import scheme_named

BUDGET = "budget.json"
MOST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Pace:
    """What a token costs in time: `rest` ms for all that is not a linear layer of a block, and `of` a layer.

    of(scheme, weights, bytes) gives ms. where: the device, for messages.
    """

    rest: float
    of: Callable[[str, int, int], float]
    where: str


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit: bits per weight of the blocks' layers, scales included; foreseen mean KL; or ms per token."""

    bits: float | None = None
    kl: float | None = None
    ms: float | None = None

    def __post_init__(self) -> None:
        """Raises Refused unless one is given, and it is more than 0."""
        found = self.as_object()
        if len(found) != 1:
            raise Refused(
                f"{len(found)} budgets are given; one was expected",
                param="target_bits",
                hint="give one of --target-bits, --max-kl, --max-latency-ms",
            )
        value = found[self.kind]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
            raise Refused(f"{self.param} is {value}; expected a number above 0", param=self.param)

    def as_object(self) -> dict[str, float]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def kind(self) -> str:
        """Which is given: the name of a field, here and of Spot."""
        return next(iter(self.as_object()))

    @property
    def param(self) -> str:
        """What it is called where it is asked for."""
        return {"bits": "target_bits", "kl": "max_kl", "ms": "max_latency_ms"}[self.kind]

    @property
    def said(self) -> str:
        """For people."""
        if self.bits is not None:
            return f"{self.bits:g} bits per weight"
        return f"a KL of {self.kl:g}" if self.kl is not None else f"{self.ms:g} ms per token"


@dataclass(frozen=True, slots=True)
class Spot:
    """A way to give schemes to groups: bits per weight, foreseen mean KL, ms per token where a device is given."""

    bits: float
    kl: float
    ms: float | None
    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The way that was taken, those of the frontier from small to large, and the recipe that takes it.

    uniform    for comparison: ways with one scheme for all, by its name
    """

    budget: Budget
    found: Sensitivity
    taken: Spot
    frontier: tuple[Spot, ...]
    uniform: dict[str, Spot]
    recipe: Recipe

    def as_object(self) -> dict[str, Any]:
        """For JSON."""

        def row(spot: Spot) -> dict[str, Any]:
            return {"bits": spot.bits, "kl": spot.kl, "ms": spot.ms}

        labels = [group.label for group in self.found.groups]
        return {
            "format": 1,
            "budget": self.budget.as_object(),
            "taken": row(self.taken),
            "schemes": dict(zip(labels, self.taken.schemes, strict=True)),
            "frontier": [row(spot) for spot in self.frontier],
            "uniform": {name: row(spot) for name, spot in self.uniform.items()},
        }


def choose(found: Sensitivity, budget: Budget, base: Recipe, pace: Pace | None = None) -> Chosen:
    """The schemes that keep within the budget at least loss; for a KL, those of the least size.

    `pace` says how fast a device is, which a budget in ms needs. Layers that `base` names stay as it says.
    Raises Refused for a budget that cannot be reached, saying what can, and for one that needs no rounding at all.
    """
    by_time = budget.ms is not None
    if by_time and pace is None:
        raise Refused("a budget in ms needs a device", param="device", hint="say which: --device h200")
    groups = [_options(group, pace if by_time else None) for group in found.groups]
    if budget.kl is not None:
        turned = [[Option(o.name, o.loss, o.cost) for o in group] for group in groups]
        pick = best(turned, budget.kl)
    else:
        pick = best(groups, _limit(found, budget, pace))
    if pick is None:
        raise _unreachable(found, budget, groups, pace)
    taken = _spot(found, groups, pick, pace)
    if set(taken.schemes) <= {NONE}:
        raise _idle(found, budget, taken)
    frontier = tuple(_spot(found, groups, each, pace) for each in sweep(groups))
    return Chosen(budget, found, taken, frontier, _uniform(found, groups, pace), _recipe(found, taken, base))


def check(asked: Study, budget: Budget, base: Recipe, pace: Pace | None = None) -> None:
    """Raises Refused, as `choose` does, for what can be told before anything is measured: sizes, and their times."""
    if budget.kl is None:
        choose(asked.sizes(), budget, base, pace)


def _options(group: Group, pace: Pace | None) -> list[Option]:
    def cost(name: str, size: int) -> float:
        return size if pace is None else pace.of(name, group.weights, size)

    return [Option(name, cost(name, loss.bytes), loss.kl) for name, loss in group.losses.items()]


def _limit(found: Sensitivity, budget: Budget, pace: Pace | None) -> float:
    if budget.bits is not None:
        return budget.bits * found.weights / 8
    assert budget.ms is not None and pace is not None
    return budget.ms - pace.rest


def _spot(found: Sensitivity, groups: list[list[Option]], pick: Pick, pace: Pace | None) -> Spot:
    names = tuple(group[n].name for group, n in zip(groups, pick.chosen, strict=True))
    losses = [group.losses[name] for group, name in zip(found.groups, names, strict=True)]
    ms = None
    if pace is not None:
        each = zip(names, found.groups, losses, strict=True)
        ms = pace.rest + sum(pace.of(name, group.weights, loss.bytes) for name, group, loss in each)
    bits = sum(loss.bytes for loss in losses) * 8 / found.weights
    return Spot(bits, sum(loss.kl for loss in losses), ms, names)


def _uniform(found: Sensitivity, groups: list[list[Option]], pace: Pace | None) -> dict[str, Spot]:
    """All in one scheme, for each that fits all layers; that they stay as they are says nothing."""
    shared = [name for name in found.groups[0].losses if all(name in group.losses for group in found.groups)]
    spots = {}
    for name in shared:
        chosen = [[option.name for option in group].index(name) for group in groups]
        if name != NONE:
            spots[name] = _spot(found, groups, Pick.of(groups, chosen), pace)
    return spots


def _recipe(found: Sensitivity, taken: Spot, base: Recipe) -> Recipe:
    """The commonest scheme for all, exceptions by name, and what the base names itself last: it holds."""
    sizes: Counter[str] = Counter()
    for name, group in zip(taken.schemes, found.groups, strict=True):
        if name != NONE and base.rounding.fits(scheme_named(name)) is None:
            sizes[name] += len(group.names)
    common = max(sizes, key=lambda name: sizes[name], default=NONE)
    layers = [
        (layer, _choice(name, base))
        for name, group in zip(taken.schemes, found.groups, strict=True)
        for layer in group.names
        if name != common
    ]
    return replace(base, scheme=common, layers=(*layers, *base.layers))


def _choice(name: str, base: Recipe) -> Choice:
    """With plain rounding where the recipe's own pass cannot make the scheme."""
    fits = name == NONE or base.rounding.fits(scheme_named(name)) is None
    return Choice(name) if fits else Choice(name, Rtn())


def _unreachable(
    found: Sensitivity, budget: Budget, groups: list[list[Option]], pace: Pace | None
) -> Refused:
    points = sweep(groups)
    spot = _spot(found, groups, points[0 if budget.kl is None else -1], pace)
    least = asdict(spot)[budget.kind]
    where = f" on {pace.where}" if budget.ms is not None and pace is not None else ""
    rest = f", of which {pace.rest:.3g} go for what is not the blocks' weights" if where and pace else ""
    other = {
        "bits": "coarser --schemes", "kl": "finer --schemes, such as w8a16 or none",
        "ms": "faster --schemes, or another --device",
    }[budget.kind]  # fmt: skip
    return Refused(
        f"{budget.said} cannot be reached{where}: with these schemes {least:.4g} is the least foreseen{rest}",
        param=budget.param,
        hint=f"ask for --{budget.param.replace('_', '-')} {_above(least):g} or more, or allow {other}",
    )


def _above(value: float) -> float:
    """Rounded up to three digits or more, so that what a hint says can be reached."""
    scale = 10.0 ** (2 - floor(log10(value))) if value > 0 else 1.0
    return ceil(value * scale) / scale


def _idle(found: Sensitivity, budget: Budget, taken: Spot) -> Refused:
    if budget.kl is not None:
        least = min(loss.kl for group in found.groups for name, loss in group.losses.items() if name != NONE)
        return Refused(
            f"{budget.said} lets no layer be rounded: the least that one costs is {least:.3g}",
            param=budget.param,
            hint="allow a larger --max-kl, or finer schemes with --schemes",
        )
    what = f"{taken.bits:g} bits per weight" if budget.bits is not None else f"{taken.ms:.3g} ms per token"
    return Refused(
        f"{budget.said} are kept by the model as it is, with {what}",
        param=budget.param,
        hint="ask for less, or round it all with --scheme",
    )


def shown(chosen: Chosen, rows: int = 12) -> list[Spot]:
    """So many spots of the frontier, evenly from its smallest to its largest, and the one taken."""
    frontier = chosen.frontier
    low, high = frontier[0].bits, frontier[-1].bits
    marks = [low * (high / low) ** (n / max(1, rows - 1)) for n in range(rows)] if high > low else [low]
    near = [min(frontier, key=lambda spot: abs(spot.bits - mark)) for mark in marks]
    return sorted({*near, chosen.taken}, key=lambda spot: (spot.bits, -spot.kl))


def beside(chosen: Chosen) -> dict[str, dict[str, Any]]:
    """The files that lie beside the weights and say what was measured and chosen, by name."""
    return {FILE: chosen.found.as_object(), BUDGET: chosen.as_object()}


def chosen_for(out: Path, budget: Budget, base: Recipe, pace: Pace | None = None) -> Chosen | None:
    """What a search for the same budget chose that has finished `out`; None where none has."""
    try:
        same = read_json(out / BUDGET)["budget"] == budget.as_object()
        return choose(read(out), budget, base, pace) if same else None
    except (Refused, KeyError):  # no such files, or others
        return None


def forget(out: Path) -> None:
    """Throw away the work of measuring."""
    shutil.rmtree(folder_of(folder_for(out)), ignore_errors=True)
