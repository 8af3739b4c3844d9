"""Measures what rounding one layer alone does to the model's predictions, for every layer and scheme, in one walk.

The loss of a layer in a scheme is the mean KL divergence of the model's predictions from its own when only this layer
is rounded; losses of layers are then added up, as second-order sensitivities are (Dong et al. 2020, "HAWQ-V2", section
3.1), here measured and not estimated from a Hessian (as AutoQuantize of NVIDIA's Model Optimizer does with its score).

Blocks are read once, in order. Hidden states of all trials so far (a trial is a layer in a scheme) go through a block
together, and those of the block's own trials join them: one block is in memory, whatever the model's size. At the end
all meet at the output head. C trials, S windows of T tokens, E hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.base.memory import give_back
from headrace.nn.decoder import Decoder
from headrace.nn.linear import Linear
from headrace.optimize.cost import COPIED, FLOAT, TRIES, rate
from headrace.optimize.job import Job, blocks_of, look
from headrace.optimize.layer import collect, outputs, round_layer
from headrace.optimize.losses import Group, Loss, Sensitivity
from headrace.optimize.passes.rtn import Rtn
from headrace.optimize.recipe import NONE, Assigned, Recipe
from headrace.optimize.resident import Resident
from headrace.optimize.walk import Report
from headrace.optimize.watch import Rounded, linears
from headrace.optimize.work import Hidden, Work, check_disk, folder_of, room
from headrace.quant.export import written
from headrace.quant.scheme import Scheme, packed_bytes
from headrace.quant.schemes import known, scheme_named

SCHEMES = ("w4a16", "w4a16_g64", "w4a16_g32_asym", "w8a16")
"""What layers are tried in, where nothing else is said, besides staying as they are."""
TOKENS = 1024
"""Read in each trial, where nothing else is said."""
WINDOW = 128
"""Tokens of a window: short ones, so that there are many for their number."""
STEPS = 12
"""Scales tried for each group of weights: fewer than the final rounding tries."""
LOGITS = 1 << 24
"""Logits held at once: 64 MB."""


@dataclass(frozen=True)
class Place:
    """A linear layer: which of which block, names and shapes of its projections."""

    block: int
    number: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> int:
        """How many."""
        return sum(rows * columns for rows, columns in self.shapes)


@dataclass(frozen=True)
class Trial:
    """One layer in one scheme."""

    place: Place
    scheme: Scheme


@dataclass(frozen=True)
class Study:
    """What is to be measured; disk in bytes, time in s."""

    job: Job
    places: tuple[Place, ...]
    trials: tuple[Trial, ...]
    seconds: float
    disk: int

    def identity(self) -> dict[str, Any]:
        """All that decides the numbers."""
        trials = [[each.place.block, each.place.number, each.scheme.name] for each in self.trials]
        return {**self.job.identity(), "schemes and layers": trials}

    def found(self, means: Sequence[float], errors: Sequence[float], seconds: float) -> Sensitivity:
        """With these losses of the trials, in order."""
        assert self.job.ids_ST is not None
        dtype = self.job.dtype
        losses = {place: {NONE: Loss(place.weights * dtype.itemsize, 0.0, 0.0)} for place in self.places}
        for trial, mean, error in zip(self.trials, means, errors, strict=True):
            size = sum(packed_bytes(trial.scheme, *shape, dtype) for shape in trial.place.shapes)
            losses[trial.place][trial.scheme.name] = Loss(size, mean, error)
        groups = tuple(Group(place.names, place.weights, own) for place, own in losses.items())
        return Sensitivity(self.job.model, self.job.ids_ST.numel(), seconds, groups)

    def sizes(self) -> Sensitivity:
        """What is known before anything is measured: every rounding counts as the same loss."""
        ones = [1.0] * len(self.trials)
        return self.found(ones, ones, 0.0)


def study(
    model: str,
    out: str | Path,
    base: Recipe,
    *,
    schemes: Sequence[str] = (),
    tokens: int = TOKENS,
    device: str = "auto",
    tell: Callable[[str], None] | None = None,
) -> Study:
    """Decide what is measured; nothing is computed yet.

    Layers that `base` names are not in it: they get what it says. Its calibration says the texts and the seed.
    Raises Refused for a scheme that fits no layer, too few tokens, and what `job.look` does.
    """
    if isinstance(tokens, bool) or tokens < 2 * WINDOW:
        raise Refused(
            f"{tokens} tokens are too few to measure with; at least {2 * WINDOW}", param="sensitivity_tokens"
        )
    names = list(dict.fromkeys(schemes or SCHEMES))
    chosen = [scheme_named(name) for name in names if name != NONE]
    for scheme in chosen:
        written(scheme)
    if not chosen:
        raise Refused("there is no scheme to choose", param="schemes", hint=f"as in {','.join(SCHEMES)}")
    texts = replace(base.calibration, samples=tokens // WINDOW, tokens=WINDOW)
    # A rounding of its own, quick and without Hessians; a turn changes what rounds well, so it is kept.
    passes = tuple(each for each in (base.turn, Rtn(steps=STEPS)) if each is not None)
    job = look(model, out, Recipe(NONE, passes, (), texts, base.dtype), device, tell)
    replace(base, scheme=NONE).plan(job.build())  # refuses names that are none
    places = _places(job, lambda name: any(fnmatchcase(name, pattern) for pattern, _ in base.layers))
    trials = tuple(
        Trial(place, scheme)
        for place in places
        for scheme in chosen
        if not any(scheme.fits(*shape) for shape in place.shapes)
    )
    fitted = {trial.scheme.name for trial in trials}
    for scheme in chosen:
        if schemes and scheme.name not in fitted:
            raise _unfit(scheme, places)
    if not trials:
        raise Refused("none of these schemes fits any layer", param="schemes")
    assert job.ids_ST is not None
    disk = 2 * (len(trials) + 1) * job.ids_ST.numel() * job.build().shape.hidden * FLOAT
    return Study(job, places, trials, _seconds(job, trials), disk)


def _places(job: Job, named: Callable[[str], bool]) -> tuple[Place, ...]:
    """Of all layers in the blocks but those that are named."""
    model = job.build()
    names = {layer: tuple(own) for own, layer in model.linears()}
    places = tuple(
        Place(b, number, names[layer], tuple((rows, layer.inputs) for rows in layer.outputs))
        for b, block in enumerate(blocks_of(model))
        for number, layer in enumerate(linears(block))
        if not any(named(name) for name in names[layer])
    )
    if not places:
        raise Refused("the recipe names all layers; none is left to choose for", param="recipe")
    return places


def _unfit(scheme: Scheme, places: Sequence[Place]) -> Refused:
    shapes = list(dict.fromkeys(shape for place in places for shape in place.shapes))
    reason = next(filter(None, (scheme.fits(*shape) for shape in shapes)))
    fitting = [name for name, other in known().items() if not any(other.fits(*shape) for shape in shapes)]
    return Refused(
        f"{scheme.name} fits none of the layers: {reason}",
        param="schemes",
        hint=f"schemes that fit all of them: {', '.join(sorted(fitting))}",
    )


def _seconds(job: Job, trials: Sequence[Trial]) -> float:
    """Of arithmetic."""
    assert job.ids_ST is not None
    model, tokens, speed = job.build(), job.ids_ST.numel(), rate(job.device)
    blocks, head = _sizes(model)
    runs = 2.0 * _products(blocks, head, trials) * tokens / speed
    cores = max(1, torch.get_num_threads())
    tried = sum(trial.place.weights for trial in trials) * STEPS * TRIES / cores
    moved = 2.0 * len(trials) * len(blocks) * tokens * model.shape.hidden * FLOAT / 2 / (4 * COPIED)
    return runs + tried + moved + sum(blocks) * 2 / COPIED


def _sizes(model: Decoder) -> tuple[list[int], float]:
    """Weights of each block, and of the head, where comparing counts as half a product."""
    blocks = [sum(layer.weight.numel() for layer in linears(block)) for block in blocks_of(model)]
    return blocks, 1.5 * model.shape.vocab * model.shape.hidden


def _products(blocks: list[int], head: float, trials: Sequence[Trial]) -> float:
    """Weights that a token of all trials is multiplied by, each from its block to the end."""
    return sum(sum(blocks[trial.place.block :]) + head for trial in trials)


def folder_for(out: Path) -> Path:
    """Stands for `out` where the work of measuring is kept (see work.folder_of)."""
    return out.parent / f"{out.name}.sensitivity"


def measure(asked: Study, fresh: bool = False, report: Report | None = None) -> Sensitivity:
    """Measure, or go on where another run of the same study was killed; what is done is not done again.

    Raises Refused where the disk is full, or holds the work of another study.
    """
    where = folder_for(asked.job.out)
    check_disk(where, asked.disk, "use fewer --sensitivity-tokens or --schemes, or write to another disk")
    with room(folder_of(where), asked.disk), Work(where, asked.identity(), fresh) as work, work.threads():
        return _Measuring(asked, work, report).run()


class _Measuring:
    def __init__(self, asked: Study, work: Work, report: Report | None):
        assert asked.job.ids_ST is not None
        self._asked, self._work, self._report = asked, work, report
        self._ids_ST = asked.job.ids_ST
        self._parts = Resident(asked.job)
        self._blocks = self._parts.blocks
        self._begun = perf_counter()
        self._sizes, self._head = _sizes(self._parts.model)
        runs = _products(self._sizes, self._head, asked.trials)
        self._done, self._total = 0.0, (runs + sum(self._sizes)) * len(self._ids_ST)

    def run(self) -> Sensitivity:
        """See `measure`."""
        journal, work = self._work.journal, self._work
        if "losses" not in journal:
            first = int(journal["blocks"])
            if first == 0:
                work.note(hidden=self._hidden(0).write(self._parts.embedded(self._ids_ST)))
            else:
                self._hidden(first).check(journal["hidden"])
            self._done = sum(self._work_of(block) for block in range(first))
            for block in range(first, len(self._blocks)):
                self._block(block)
            self._compare()
        losses = torch.tensor(work.journal["losses"], dtype=torch.float64)
        return self._summed(losses.view(len(self._ids_ST), len(self._asked.trials)))

    # -- blocks ---------------------------------------------------------------------------------------------------

    def _block(self, index: int) -> None:
        block, windows = self._blocks[index], self._hidden(index)
        what = f"sensitivity, block {index + 1} of {len(self._blocks)}"
        self._parts.fill(block.modules())
        tick = self._ticking(what, self._sizes[index])
        before = outputs(block, Rounded(), windows.windows(), tick)
        trials = [trial for trial in self._asked.trials if trial.place.block == index]
        own = chain.from_iterable(self._tried(index, trials, tick)) if trials else iter(())
        sum_ = self._hidden(index + 1).write(chain(before, own))
        self._parts.empty(block.modules())
        self._work.note(blocks=index + 1, hidden=sum_, seconds=self._seconds())
        self._work.forget("hidden-*", self._hidden(index + 1).file)
        give_back()

    def _tried(
        self, index: int, trials: Sequence[Trial], tick: Callable[[], None]
    ) -> Iterator[Iterator[Tensor]]:
        """The hidden states after the block, trial by trial; its weights are as they were afterwards."""
        block, count = self._blocks[index], len(self._ids_ST)
        layers = linears(block)
        base = [self._hidden(index).at(number) for number in range(count)]
        wanted: dict[Linear, frozenset[Any]] = {layers[trial.place.number]: frozenset() for trial in trials}
        inputs = collect(block, Rounded(), base, self._ids_ST.numel(), wanted, lambda: None)
        rounding = self._asked.job.recipe.rounding
        for trial in trials:
            layer, names = layers[trial.place.number], trial.place.names
            kept = layer.weight.data.clone()
            plan = dict.fromkeys(names, Assigned(trial.scheme, rounding, ""))
            _, parts = round_layer(layer, plan, names, inputs[layer], self._asked.job.dtype)
            yield outputs(block, Rounded({layer: parts}), base, tick)
            layer.weight.data.copy_(kept)

    # -- the head -------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """KL of each trial from the model itself, window by window, into the journal."""
        model, work, count = self._parts.model, self._work, len(self._ids_ST)
        self._parts.fill([model.norm, model.embed_tokens if model.lm_head is None else model.lm_head])
        windows = self._hidden(len(self._blocks))
        sums: list[list[float]] = work.journal.setdefault("compared", [])
        tick = self._ticking("sensitivity, comparing", self._head)
        self._done += len(sums) * len(self._asked.trials) * self._head
        for number in range(len(sums), count):
            base = self._normed(windows.at(number))
            others = (
                self._normed(windows.at((n + 1) * count + number)) for n in range(len(self._asked.trials))
            )
            sums.append(_divergences(model.logits, base, others, model.shape.vocab, tick))
            work.note(compared=sums, seconds=self._seconds())
        work.note(losses=sums)
        work.forget("hidden-*")
        self._parts.empty(model.modules())

    def _normed(self, x_TE: Tensor) -> Tensor:
        return self._parts.model.norm(x_TE.to(self._asked.job.device))

    def _summed(self, losses_SC: Tensor) -> Sensitivity:
        means = losses_SC.mean(0).clamp_min(0).tolist()
        errors = (losses_SC.std(0) / math.sqrt(len(losses_SC))).tolist()
        return self._asked.found(means, errors, float(self._work.journal["seconds"]))

    # -- where it stands ------------------------------------------------------------------------------------------

    def _hidden(self, index: int) -> Hidden:
        width = self._parts.model.shape.hidden
        return Hidden(self._work.folder / f"hidden-{index}", self._ids_ST.shape[1], width)

    def _seconds(self) -> float:
        now = perf_counter()
        spent, self._begun = now - self._begun, now
        return float(self._work.journal["seconds"]) + spent

    def _work_of(self, block: int) -> float:
        trials = sum(trial.place.block <= block for trial in self._asked.trials)
        return (trials + 1) * len(self._ids_ST) * self._sizes[block]

    def _ticking(self, what: str, size: float) -> Callable[[], None]:
        def tick() -> None:
            self._done += size
            if self._report is not None:
                share = min(self._done / self._total, 1.0)
                self._report(what, share * self._asked.seconds, self._asked.seconds)

        return tick


@torch.inference_mode()
def _divergences(
    logits: Callable[[Tensor], Tensor],
    base_TE: Tensor,
    others: Iterator[Tensor],
    vocab: int,
    tick: Callable[[], None],
) -> list[float]:
    """Mean over tokens of KL(p || q), p being what `base_TE` says, for each of `others`."""
    rows = max(1, LOGITS // vocab)
    z_pieces = [logits(rows_SE) for rows_SE in base_TE.split(rows)]
    p_pieces = [torch.softmax(z_SV, 1) for z_SV in z_pieces]
    found = []
    for other_TE in others:
        each = zip(z_pieces, p_pieces, other_TE.split(rows), strict=True)
        total = sum(float(_kl(p_SV, logits(q_SE).sub_(z_SV)).sum()) for z_SV, p_SV, q_SE in each)
        found.append(total / len(base_TE))
        tick()
    return found


def _kl(p_SV: Tensor, d_SV: Tensor) -> Tensor:
    """KL(p || softmax(log p + d)) = log E[exp d] - E[d], in float32 without loss: d is small, and its mean taken off.

    With E[d] = 0 it is log1p(E[expm1(d) - d]); what float rounding leaves of E[d] is counted, too.
    """
    d_SV = d_SV.nan_to_num_(0.0)  # what neither holds possible adds nothing
    d_SV -= (p_SV * d_SV).sum(1, keepdim=True)
    left_S = (p_SV * d_SV).sum(1, dtype=torch.float64)
    more_S = (torch.expm1(d_SV) - d_SV).mul_(p_SV).sum(1, dtype=torch.float64)
    return torch.log1p(more_S + left_S) - left_S
