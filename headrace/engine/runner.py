"""One device: a step in, its tokens out."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headrace.engine.batch import Batch
from headrace.engine.request import PromptLogprobs
from headrace.engine.sampler import Sampler, Samples
from headrace.engine.scheduler import Outcome, Row
from headrace.nn.decoder import Decoder

LOGIT_ROWS = 256
"""Prompt positions whose logits are held at once; bounds the memory that prompt_logprobs takes."""

Pending = Callable[[], Outcome]
"""Waits for a step to end on the device and returns what it gave."""


class Runner:
    """Owns the model, the batch's buffers and the sampler of one device."""

    def __init__(self, model: Decoder, batch: Batch, sampler: Sampler):
        self.model, self.batch, self.sampler = model, batch, sampler

    @torch.inference_mode()
    def run(self, step: list[Row]) -> Pending:
        """Enqueue a step. On a GPU this returns before the step has run."""
        self._admit(step)
        batch = self.batch
        batch.fill(step)
        hidden_TE = self.model(batch)
        prompt = self._prompt_logprobs(step, hidden_TE)
        if not batch.samples_np.any():
            return lambda: Outcome([], None, prompt)
        logits_SV = self.model.logits(hidden_TE[batch.sample])
        slots_np = batch.row_slots_np[batch.samples_np]
        positions_np = batch.context_np[batch.samples_np].astype(np.int64)
        samples = self.sampler.sample(logits_SV, slots_np, positions_np)
        batch.last[torch.from_numpy(slots_np.copy()).to(batch.last.device)] = samples.tokens
        return self._fetch(samples, prompt)

    def _admit(self, step: list[Row]) -> None:
        for row in step:
            if row.new is not None and row.new.at == 0:  # the first row of a sequence's stay in its slot
                self.sampler.admit(row.slot, row.seq.request, row.seq.tokens)

    def _fetch(self, samples: Samples, prompt: dict[int, PromptLogprobs] | None) -> Pending:
        tokens = samples.tokens
        if tokens.is_cuda:
            landed = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            landed.copy_(tokens, non_blocking=True)
            done = torch.cuda.Event()
            done.record()

            def wait() -> Outcome:
                done.synchronize()
                return Outcome(landed.tolist(), samples.lists(), prompt)

            return wait
        return lambda: Outcome(tokens.tolist(), samples.lists(), prompt)

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
