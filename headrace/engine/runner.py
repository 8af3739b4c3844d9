"""One device: a step in, its tokens out."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.engine.batch import Batch
from headrace.engine.constrain import Masks
from headrace.engine.graphs import Graphs
from headrace.engine.pace import Pace
from headrace.engine.request import PromptLogprobs
from headrace.engine.sampler import GRAMMAR, Sampler, Samples
from headrace.engine.scheduler import Outcome, Row
from headrace.engine.script import Script
from headrace.kernels.sample import Draws
from headrace.nn.decoder import Decoder

LOGIT_ROWS = 256
"""Prompt positions whose logits are held at once; bounds the memory that prompt_logprobs takes."""

Pending = Callable[[], Outcome]
"""Waits for a step to end on the device and returns what it gave."""


class Ahead(NamedTuple):
    """A step that is under way as far as its logits [S, V] where rows sample; None where no row does.

    `draws`: how its rows draw, if they are in a graph and want nothing besides but masks.
    """

    logits: Tensor | None
    prompt: dict[int, PromptLogprobs] | None = None
    draws: Draws | None = None


class Runner:
    """Owns the model, the batch's buffers and the sampler of one device.

    `graphs` only where that is a GPU, `script` and `pace` only where it is a CPU.
    """

    def __init__(
        self,
        model: Decoder,
        batch: Batch,
        sampler: Sampler,
        graphs: Graphs | None = None,
        script: Script | None = None,
        pace: Pace | None = None,
    ):
        self.model, self.batch, self.sampler, self.graphs = model, batch, sampler, graphs
        self.script, self.pace = script, pace
        self._landing = _Landing(batch.max_tokens) if batch.device.type == "cuda" else None

    @torch.inference_mode()
    def run(self, step: list[Row]) -> Pending:
        """Enqueue a step. On a GPU this returns before the step has run."""
        pad = self._admit(step)
        if pad is not None:
            return self._replay(step, pad)
        return self.draw(self._to_logits(step))

    def prepare(self, step: list[Row]) -> None:
        """What of `run` and `forward` can be done while an open step still waits for its masks. May be left out.

        That needs memory of the host's own, and rows that all go on: whoever is new changes how its slot draws.
        """
        pad = self._pad(step)
        if (
            pad is not None
            and not self.batch.staging.alias
            and all(row.new is None or row.new.at > 0 for row in step)
        ):
            self.batch.lay_out(step, pad)

    @torch.inference_mode()
    def forward(self, step: list[Row]) -> Ahead:
        """The first part of `run`: all that needs no masks. `draw` is to follow before anything else."""
        pad = self._admit(step)
        if pad is None:
            return self._to_logits(step)
        assert self.graphs is not None
        self.batch.fill(step, pad)
        self.sampler.flush()
        draws = self.sampler.draws(self.batch.row_slots_np, GRAMMAR)
        return Ahead(self.graphs.run(None)[: len(step)], None, draws)

    @torch.inference_mode()
    def draw(self, ahead: Ahead, masks: Masks | None = None) -> Pending:
        """The second part of `run`: tokens, by what the masks allow."""
        if ahead.logits is None:
            return lambda: Outcome([], None, ahead.prompt)
        if ahead.draws is not None and masks is not None:
            assert self.graphs is not None
            return self._fetch(Samples(self.graphs.draw(ahead.draws, masks)[: len(ahead.logits)]), None)
        return self._sample(ahead.logits, ahead.prompt, masks)

    def _admit(self, step: list[Row]) -> int | None:
        """Tell the sampler who is new. See `_pad`."""
        for row in step:
            if row.new is not None and row.new.at == 0:  # the first row of a sequence's stay in its slot
                self.sampler.admit(row.slot, row.seq.request, row.seq.tokens)
        return self._pad(step)

    def _pad(self, step: list[Row]) -> int | None:
        """How many rows to lay out for a graph; None if the step is for none."""
        return self.graphs.rows_for(len(step)) if self.graphs and all(row.feeds for row in step) else None

    def _to_logits(self, step: list[Row]) -> Ahead:
        batch = self.batch
        if self.pace is not None:
            self.pace.begin(sum(row.stop - row.start for row in step))
        hidden_TE = self._hidden(step)
        prompt = self._prompt_logprobs(step, hidden_TE)
        logits_SV = self.model.logits(hidden_TE.index_select(0, batch.sample)) if len(batch.sample) else None
        if self.pace is not None:
            self.pace.end()
        return Ahead(logits_SV, prompt)

    def _hidden(self, step: list[Row]) -> Tensor:
        every = any(row.seq.request.params.prompt_logprobs is not None for row in step)
        if self.script is not None:
            self.batch.fill(step)
            return self.script(None if every else self.batch.sample)
        if self.graphs is None:
            self.batch.fill(step, every=every)
            return self.model(self.batch)
        room = self.graphs.room_for(len(step), sum(row.stop - row.start for row in step))
        self.batch.fill(step, room=room, every=every)
        return self.graphs.hidden()

    def check(self) -> None:
        """Wait for the device. Raises if it is beyond repair, as after an illegal access."""
        if self.batch.device.type == "cuda":
            torch.cuda.synchronize(self.batch.device)

    def _replay(self, step: list[Row], pad: int) -> Pending:
        assert self.graphs is not None
        self.batch.fill(step, pad)
        self.sampler.flush()
        draws = self.sampler.draws(self.batch.row_slots_np)
        out = self.graphs.run(draws)[: len(step)]
        return self._sample(out, None) if draws is None else self._fetch(Samples(out), None)

    def _sample(
        self, logits_SV: Tensor, prompt: dict[int, PromptLogprobs] | None, masks: Masks | None = None
    ) -> Pending:
        batch = self.batch
        samples = self.sampler.sample(logits_SV, batch.sample_slots_np, batch.sample_positions_np, masks)
        # Of a row with guesses this is any of its tokens: the host tells the next step which was the last.
        batch.last.index_copy_(0, batch.sample_slots, samples.tokens)
        return self._fetch(samples, prompt)

    def _fetch(self, samples: Samples, prompt: dict[int, PromptLogprobs] | None) -> Pending:
        if self._landing is None:
            return lambda: Outcome(samples.tokens.tolist(), samples.lists(), prompt)
        landed, done = self._landing.receive(samples.tokens)

        def wait() -> Outcome:
            done.synchronize()
            return Outcome(landed.tolist(), samples.lists(), prompt)

        return wait

    def _prompt_logprobs(self, step: list[Row], hidden_TE: Tensor) -> dict[int, PromptLogprobs] | None:
        found: dict[int, PromptLogprobs] = {}
        for i, row in enumerate(step):
            request = row.seq.request
            k = request.params.prompt_logprobs
            last = min(row.stop, len(request.prompt) - 1)
            if k is None or row.start >= last:
                continue
            at = int(self.batch.starts_np[i])
            targets = torch.tensor(request.prompt[row.start + 1 : last + 1], device=hidden_TE.device)
            found[i] = []
            for a in range(0, len(targets), LOGIT_ROWS):
                b = min(a + LOGIT_ROWS, len(targets))
                logits = self.model.logits(hidden_TE[at + a : at + b])
                found[i] += self.sampler.prompt_logprobs(logits, targets[a:b], k)
        return found or None


class _Landing:
    """Pinned memory where tokens arrive: enough places that none is used again while a step may still read it."""

    def __init__(self, most: int):
        self._places = [torch.empty(most, dtype=torch.int64, pin_memory=True) for _ in range(4)]
        self._events = [torch.cuda.Event() for _ in self._places]
        self._turn = 0

    def receive(self, tokens: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Start the copy; the event says when it is done."""
        self._turn = (self._turn + 1) % len(self._places)
        landed, done = self._places[self._turn][: len(tokens)], self._events[self._turn]
        landed.copy_(tokens, non_blocking=True)
        done.record()
        return landed, done
