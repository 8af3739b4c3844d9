"""Picks one option of each group so that the sum of losses is least and the sum of costs within a limit.

That is the multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger 2004, "Knapsack Problems", chapter 11). Its
convex hull is found by a sweep over the price of cost (Everett 1963, Lagrange multipliers); what lies between two of
its points by dynamic programming over undominated states, cut where the hull says that they cannot win.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STATES = 1 << 18
"""Most states kept at once; beyond that the least promising go, and the answer may be a little short of the best."""
SLACK = 1e-12
"""By which share of itself a limit may be passed: sums of floats depend on their order."""


class Option(NamedTuple):
    """One way to treat a group. Both numbers are 0 or more."""

    name: str
    cost: float
    loss: float


Group = Sequence[Option]


@dataclass(frozen=True, slots=True)
class Pick:
    """An option of each group, by its number; sums of their costs and losses."""

    chosen: tuple[int, ...]
    cost: float
    loss: float

    @classmethod
    def of(cls, groups: Sequence[Group], chosen: Sequence[int]) -> "Pick":
        """With its sums."""
        options = [group[n] for group, n in zip(groups, chosen, strict=True)]
        return cls(tuple(chosen), sum(o.cost for o in options), sum(o.loss for o in options))


def hull(group: Group) -> list[int]:
    """The options that some price of cost makes the best, from the cheapest to the one of least loss."""
    kept: list[int] = []
    for n in sorted(range(len(group)), key=lambda n: (group[n].cost, group[n].loss)):
        if kept and group[n].loss >= group[kept[-1]].loss:
            continue
        while len(kept) > 1 and _gain(group, kept[-2], kept[-1]) <= _gain(group, kept[-2], n):
            kept.pop()
        if kept and group[n].cost == group[kept[-1]].cost:
            kept.pop()
        kept.append(n)
    return kept


def _gain(group: Group, old: int, new: int) -> float:
    """Loss saved per cost."""
    dearer = group[new].cost - group[old].cost
    saved = group[old].loss - group[new].loss
    return saved / dearer if dearer > 0 else np.inf


class _Step(NamedTuple):
    """A group's way from one option of its hull to the next."""

    gain: float
    group: int
    chosen: int
    cost: float
    loss: float


def _steps(groups: Sequence[Group], hulls: Sequence[Sequence[int]]) -> list[_Step]:
    """Of all groups, those that save most per cost first. Within a group they come in order: a hull bends one way."""
    found = [
        _Step(
            _gain(group, old, new),
            g,
            new,
            group[new].cost - group[old].cost,
            group[old].loss - group[new].loss,
        )
        for g, (group, kept) in enumerate(zip(groups, hulls, strict=True))
        for old, new in pairwise(kept)
    ]
    return sorted(found, key=lambda step: -step.gain)


def sweep(groups: Sequence[Group]) -> list[Pick]:
    """The convex hull of all picks, from the cheapest to the one of least loss: none of the same cost loses less."""
    hulls = [hull(group) for group in groups]
    chosen = [kept[0] for kept in hulls]
    found = [Pick.of(groups, chosen)]
    for step in _steps(groups, hulls):
        chosen[step.group] = step.chosen
        found.append(Pick.of(groups, chosen))
    return found


def best(groups: Sequence[Group], limit: float) -> Pick | None:
    """The pick of least loss that costs `limit` at most; None where none does."""
    most = limit * (1 + SLACK)
    points = [pick for pick in sweep(groups) if pick.cost <= most]
    if not points:
        return None
    return _searched(groups, most, points[-1])


class _Rest(NamedTuple):
    """The least loss that groups yet to come can have for their cost, if options could be divided: bends of a line."""

    cost: Floats
    loss: Floats

    def least(self, left: Floats) -> Floats:
        """Infinite where not even the cheapest options fit."""
        found = np.interp(left, self.cost, self.loss)
        return np.where(left < self.cost[0], np.inf, found)


def _rests(groups: Sequence[Group]) -> list[_Rest]:
    """For the groups from each one on, and for none."""
    hulls = [hull(group) for group in groups]
    steps = _steps(groups, hulls)
    found = []
    for first in range(len(groups) + 1):
        start = [groups[g][hulls[g][0]] for g in range(first, len(groups))]
        own = [step for step in steps if step.group >= first]
        costs = np.cumsum([sum(o.cost for o in start), *(step.cost for step in own)])
        losses = np.cumsum([sum(o.loss for o in start), *(-step.loss for step in own)])
        found.append(_Rest(costs, losses))
    return found


def _searched(groups: Sequence[Group], most: float, good: Pick) -> Pick:
    """The best, which loses no more than `good`."""
    rests = _rests(groups)
    cost, loss = np.zeros(1), np.zeros(1)
    back: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    slack = most * SLACK
    for group, rest in zip(groups, rests[1:], strict=True):
        costs = (cost[:, None] + np.array([option.cost for option in group])).ravel()
        losses = (loss[:, None] + np.array([option.loss for option in group])).ravel()
        bound = losses + rest.least(most - costs + slack)
        kept = np.flatnonzero(bound <= good.loss * (1 - SLACK))
        kept = kept[np.lexsort((losses[kept], costs[kept]))]
        lowest = np.minimum.accumulate(losses[kept])
        kept = kept[np.concatenate(([True], lowest[1:] < lowest[:-1]))] if len(kept) else kept
        if len(kept) > STATES:
            kept = np.sort(kept[np.argpartition(bound[kept], STATES)[:STATES]])
            kept = kept[np.argsort(costs[kept], kind="stable")]
        if not len(kept):
            return good  # nothing is better
        cost, loss = costs[kept], losses[kept]
        back.append((kept // len(group), kept % len(group)))
    state, chosen = int(np.argmin(loss)), []
    for parent, option in reversed(back):
        chosen.append(int(option[state]))
        state = int(parent[state])
    return Pick.of(groups, chosen[::-1])
