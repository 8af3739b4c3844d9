"""Walks a model block by block, from disk to disk: read, watched, changed, rounded, run again as rounded, written.

In memory there is one block in float32, what is known of one layer's inputs, and a window of hidden states; those of
all windows lie in a file between blocks (see work.py). The same machine with as many threads gives the same bytes,
whatever was interrupted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint
from headrace.base.memory import give_back
from headrace.base.words import dtype_name
from headrace.checkpoint.load import HEAD as WEIGHT
from headrace.checkpoint.shards import Entry, entry, streamed, write
from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.optimize.cost import Cost, rounding_of, staged
from headrace.optimize.inputs import Collector, Inputs, Need
from headrace.optimize.job import Job, schemes_of
from headrace.optimize.layer import (
    Done,
    collect,
    described,
    joined,
    output_change,
    outputs,
    pack,
    round_layer,
    tensors_of,
)
from headrace.optimize.outcome import Layer
from headrace.optimize.passes import Rounding
from headrace.optimize.pieces import pieces
from headrace.optimize.resident import Resident
from headrace.optimize.watch import Rounded, linears
from headrace.optimize.work import Hidden, Work
from headrace.quant.export import HEAD
from headrace.quant.scheme import Scheme

Report = Callable[[str, float, float], None]
"""Told what is being done, and of how many expected seconds of work how many are done."""


class Walk:
    """A run of a job in its work folder; `cost` is what it was expected to take."""

    def __init__(self, job: Job, work: Work, cost: Cost, report: Report | None):
        self.job, self.work, self.cost = job, work, cost
        self._report = report
        self.parts = Resident(job)
        self.model, self.blocks, self.names = self.parts.model, self.parts.blocks, self.parts.names
        self.layers: list[Layer] = [Layer(**each) for each in work.journal["layers"]]
        self._begun = perf_counter()
        self._before = float(work.journal["seconds"])
        self._done = 0.0
        self._text = self._what = ""

    # -- in order -------------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """All blocks that are not done yet, then the rest; the names of the files, in the model's order."""
        first = int(self.work.journal["blocks"])
        if first == 0:
            self._embed()
        else:
            ended = first == len(self.blocks) and self.job.plan[HEAD].scheme is None
            if self.job.ids_ST is not None and not ended:
                self._hidden(first).check(self.work.journal["hidden"])
        self._done = sum(step.seconds for step in self.cost.blocks[:first])
        for index in range(first, len(self.blocks)):
            self._block(index)
        parts = self._rest()
        return [parts[0], *(f"block-{n:05}" for n in range(len(self.blocks))), *parts[1:]]

    @property
    def seconds(self) -> float:
        """Of work so far, interrupted runs included."""
        return self._before + perf_counter() - self._begun

    def _block(self, index: int) -> None:
        self._text = f"block {index + 1} of {len(self.blocks)}"
        block, done, rounded = self.blocks[index], Done(), Rounded()
        layers = linears(block)
        self.parts.fill(module for module in block.modules() if not isinstance(module, Linear))
        self._change(block, index)
        for stage in staged(self.job, self.model, block):
            if self.job.ids_ST is not None:
                self.parts.fill(layers[: stage[-1]], done.packed)
            inputs = self._inputs(block, index, rounded, [layers[i] for i in stage])
            for i in stage:
                self._make_room(layers, i, done)
                self.parts.fill([layers[i]])
                # Given away: what is known of a layer's inputs may be larger than the layer.
                self._round(layers[i], inputs.pop(layers[i]), rounded, done)
                self._add(self.cost.blocks[index].round[i])
            give_back()
        self.parts.fill(layers, done.packed)
        self._write(f"block-{index:05}", block, done)
        changes = {"blocks": index + 1, "hidden": self._pass_on(block, index, rounded)}
        self.layers += done.layers
        self.parts.empty(block.modules())
        self.work.note(**changes, layers=[asdict(each) for each in self.layers], seconds=self.seconds)
        self.work.forget("hidden-*", self._hidden(index + 1).file)

    def _make_room(self, layers: list[Linear], chosen: int, done: Done) -> None:
        """Before a layer is rounded: forget the others where the Hessian is larger; they can be had again."""
        own = layers[chosen]
        others = [layer for layer in layers if layer is not own and layer.weight.numel()]
        back = [layer for layer in others if not layer.weight.is_meta and self._can_be_had(layer, done)]
        if "hessian" in self._way(own).needs and own.inputs**2 > sum(layer.weight.numel() for layer in back):
            self.parts.empty(back)

    def _can_be_had(self, layer: Linear, done: Done) -> bool:
        """Again: from what was rounded, or from the source, where nothing has changed it since."""
        return not self.job.recipe.changes or all(name in done.packed for name in self.names[layer])

    def _change(self, block: Block, index: int) -> None:
        if self.job.recipe.changes:
            self.parts.fill(linears(block))
        for change in self.job.recipe.changes:
            self._say(change.name)
            needs = {layer: change.needs - {"hessian"} for layer in linears(block)}
            cost = self.cost.blocks[index].change / len(self.job.recipe.changes)
            found = self._collected(block, index, Rounded(), needs, cost / 2)
            change.change(block, found, self._coarsest)
            self._add(cost / 2)

    def _inputs(
        self, block: Block, index: int, rounded: Rounded, layers: list[Linear]
    ) -> dict[Linear, Inputs]:
        if self.job.ids_ST is None:
            return {layer: Inputs.unknown(layer.inputs, self.job.device) for layer in layers}
        needs = {layer: self._way(layer).needs for layer in layers}
        self._say(f"{self._short(layers[-1])}, watching")
        every = linears(block)
        cost = sum(self.cost.blocks[index].watch[every.index(layer)] for layer in layers)
        return self._collected(block, index, rounded, needs, cost)

    def _collected(
        self, block: Block, index: int, rounded: Rounded, needs: dict[Linear, frozenset[Need]], cost: float
    ) -> dict[Linear, Inputs]:
        assert self.job.ids_ST is not None
        each, total = cost / len(self.job.ids_ST), self.job.ids_ST.numel()
        return collect(block, rounded, self._hidden(index).windows(), total, needs, lambda: self._add(each))

    def _round(self, layer: Linear, inputs: Inputs, rounded: Rounded, done: Done) -> None:
        self._say(f"{self._short(layer)}, {self._way(layer).name}")
        names, dtype = self.names[layer], self.job.dtype
        found, parts = round_layer(layer, self.job.plan, names, inputs, dtype)
        rounded.parts[layer] = parts
        done.packed |= found.packed
        done.layers += found.layers

    def _pass_on(self, block: Block, index: int, rounded: Rounded) -> int:
        """Hidden states after a block; their checksum. Not after the last one, unless the head wants to see them."""
        last = index + 1 == len(self.blocks)
        if self.job.ids_ST is None or (last and self.job.plan[HEAD].scheme is None):
            return 0
        self._say("running as rounded")
        each = self.cost.blocks[index].run / len(self.job.ids_ST)
        windows = outputs(block, rounded, self._hidden(index).windows(), lambda: self._add(each))
        return self._hidden(index + 1).write(windows)

    def _coarsest(self, layer: Linear) -> Scheme | None:
        schemes = schemes_of(self.job.plan, self.names[layer])
        return max(schemes, key=lambda scheme: scheme.error, default=None)

    def _way(self, layer: Linear) -> Rounding:
        """What rounds a layer."""
        return rounding_of(self.job, self.names[layer])

    # -- what comes before the blocks and after -------------------------------------------------------------------

    def _embed(self) -> None:
        """Hidden states before the first block."""
        if self.job.ids_ST is not None:
            self._text = "embedding"
            self._say("")
            self.work.note(hidden=self._hidden(0).write(self.parts.embedded(self.job.ids_ST)))

    def _rest(self) -> list[str]:
        """Embedding, norm and head, as files; their names."""
        self._text = "embedding and head"
        self._say("writing")
        shape = (self.model.shape.vocab, self.model.shape.hidden)

        def rows_of(name: str) -> Callable[[], Iterator[Tensor]]:
            return lambda: (rows for _, rows in self.parts.rows(name))

        table = self.parts.embedding
        self._save("embedding", [self._plain(table, shape, rows_of(table))])
        self.parts.fill([self.model.norm])
        ((name, weight),) = [each for each in self.model.sources() if not each[1].is_meta]
        self._save("norm", [self._plain(name, weight.shape, lambda: iter([weight]))])
        if self.model.lm_head is None:
            return ["embedding", "norm"]
        assigned = self.job.plan[HEAD]
        if assigned.scheme is None:
            self._save("head", [self._plain(WEIGHT, shape, rows_of(WEIGHT))])
        else:
            self._save("head", self._round_head())
        return ["embedding", "norm", "head"]

    def _round_head(self) -> list[Entry]:
        """The head packed: some rows at a time, and as a whole only where rows do not stand for themselves."""
        assigned, scheme = self.job.plan[HEAD], self.job.plan[HEAD].scheme
        assert scheme is not None
        self._say(assigned.rounding.name)
        begun = perf_counter()
        inputs = self._head_inputs(assigned.rounding.needs)
        parts = []
        for _, rows in self.parts.rows(WEIGHT):
            found = pack(rows.to(self.job.device), assigned, inputs, self.job.dtype)
            parts.append({name: tensor.cpu() for name, tensor in found.items()})
        packed = joined(scheme, parts)
        if packed is None:
            whole = torch.cat([rows for _, rows in self.parts.rows(WEIGHT)])
            packed = pack(whole.to(self.job.device), assigned, inputs, self.job.dtype)
        shape = (self.model.shape.vocab, self.model.shape.hidden)
        device = self.job.device
        placed = {name: tensor.to(device) for name, tensor in packed.items()}
        as_it_was = ((start, rows.to(device)) for start, rows in self.parts.rows(WEIGHT))
        error = output_change(as_it_was, scheme, placed, inputs.sample_TK)
        self.layers.append(described(HEAD, assigned, shape, packed, error, perf_counter() - begun))
        return [entry(f"{HEAD}.{suffix}", each) for suffix, each in tensors_of(scheme, packed).items()]

    def _head_inputs(self, needs: frozenset[Need]) -> Inputs:
        if self.job.ids_ST is None:
            return Inputs.unknown(self.model.shape.hidden, self.job.device)
        collector = Collector(self.model.shape.hidden, self.job.ids_ST.numel(), needs, self.job.device)
        for x_TE in self._hidden(len(self.blocks)).windows():
            collector.see(self.model.norm(x_TE.to(self.job.device)))
        return collector.finished()

    # -- to disk --------------------------------------------------------------------------------------------------

    def _hidden(self, index: int) -> Hidden:
        tokens = self.job.recipe.calibration.tokens
        return Hidden(self.work.folder / f"hidden-{index}", tokens, self.model.shape.hidden)

    def _write(self, name: str, block: Block, done: Done) -> None:
        entries = [
            self._plain(own, tensor.shape, partial(pieces, tensor))
            for own, tensor in self.model.sources()
            if not tensor.is_meta and own.removesuffix(".weight") not in done.packed
        ]
        for layer, (scheme, packed) in done.packed.items():
            entries += [entry(f"{layer}.{name}", each) for name, each in tensors_of(scheme, packed).items()]
        self._save(name, entries)

    def _plain(self, name: str, shape: Sequence[int], rows: Callable[[], Iterator[Tensor]]) -> Entry:
        """A tensor that stays as it is. Raises BadCheckpoint when it is written and is not finite."""
        dtype = self.job.dtype

        def finite(some: Tensor) -> Tensor:
            found = some.to(dtype)
            if not bool(found.isfinite().all()):
                raise BadCheckpoint(
                    f"{name} has numbers that are not finite in {dtype_name(dtype)}",
                    hint="the checkpoint may be damaged: get it again; or the recipe's dtype too small",
                )
            return found

        return streamed(name, dtype, tuple(shape), lambda: map(finite, rows()))

    def _save(self, name: str, entries: list[Entry]) -> None:
        write(self.work.folder / f"{name}.part", entries)

    # -- progress -------------------------------------------------------------------------------------------------

    def _short(self, layer: Linear) -> str:
        return ", ".join(name.rpartition(".")[2].removesuffix("_proj") for name in self.names[layer])

    def _say(self, what: str) -> None:
        if self._report is not None:
            self._report(f"{self._text}: {what}" if what else self._text, self._done, self.cost.seconds)
        self._what = what

    def _add(self, seconds: float) -> None:
        self._done = min(self._done + seconds, self.cost.seconds)
        self._say(self._what)
