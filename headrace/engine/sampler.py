"""From logits to tokens for a batch of rows that each ask for something else.

S rows that sample in this step, V vocabulary, P parameters, B bad words of a row, L their longest length.
What a row's request asks for lies in tables indexed by the row's slot, on the host and (what tensors meet) on
the device. Tokens are counted on the device as they are drawn, so that the next step may be enqueued before the
host has seen them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.engine.constrain import Masks
from headrace.engine.request import Logprobs, PromptLogprobs, Request
from headrace.kernels.forbid import forbid
from headrace.kernels.sample import Draws, Knobs, draw

FORBIDDEN = -1e30
"""Added to logits of tokens that must not come; finite, so that they rank above what is not allowed at all."""

PROMPT = 1 << 30
"""Set in a token's count if the token is in the prompt; the bits below count how often it was generated."""

# What a request asks for beyond drawing; each row's sum says what must be done.
BIAS, PENALTY, WORDS, FLOOR, GRAMMAR = 1, 2, 4, 8, 16

# Rows of the table of float parameters.
SCALE, REACH, TOP_P, REPETITION, PRESENCE, FREQUENCY = range(6)


class Strips:
    """A device tensor [strips, *shape] whose strips are lent to slots that need one; more are made when all are out.

    `of` [slots] is each slot's strip, -1 without one. Whoever grows the shape finds `fill` in what is new.
    """

    def __init__(
        self, slots: int, shape: tuple[int, ...], dtype: torch.dtype, fill: float, device: torch.device
    ):
        self.of = np.full(slots, -1, np.int64)
        self.fill = fill
        self.table = torch.full((0, *shape), fill, dtype=dtype, device=device)
        self._free: list[int] = []

    def lend(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """The slot's strip, empty; at least `shape` large."""
        shape = tuple(max(a, b) for a, b in zip(shape, self.table.shape[1:], strict=True))
        if not self._free or shape != self.table.shape[1:]:
            self._grow(shape)
        strip = self._free.pop()
        self.of[slot] = strip
        return self.table[strip].fill_(self.fill)

    def take_back(self, slot: int) -> None:
        """The slot needs its strip no longer, if it has one."""
        if self.of[slot] >= 0:
            self._free.append(int(self.of[slot]))
            self.of[slot] = -1

    def _grow(self, shape: tuple[int, ...]) -> None:
        old = self.table
        count = len(old) if self._free else min(len(self.of), max(4, 2 * len(old)))
        self.table = old.new_full((count, *shape), self.fill)
        self.table[tuple(slice(n) for n in old.shape)] = old
        self._free += range(len(old), count)


class Ranked(NamedTuple):
    """Log-probabilities of R rows, in host memory once the step is over.

    rows [R] their place in the batch, widths [R] how many likely tokens each wants; logprob and rank [R] of the
    drawn token; ids and logprobs [R, K] of the likeliest.
    """

    rows: np.ndarray
    widths: np.ndarray
    logprob: Tensor
    rank: Tensor
    ids: Tensor
    logprobs: Tensor


class Samples(NamedTuple):
    """What a step drew: tokens int64 [S] on the device."""

    tokens: Tensor
    ranked: Ranked | None = None

    def lists(self) -> list[Logprobs | None] | None:
        """Log-probabilities per row, None for rows (or batches) that want none. The step must be over."""
        if self.ranked is None:
            return None
        rows, widths, *tensors = self.ranked
        found: list[Logprobs | None] = [None] * len(self.tokens)
        columns = zip(rows, widths, *(t.tolist() for t in tensors), strict=True)
        for row, width, logprob, rank, ids, logprobs in columns:
            found[row] = Logprobs(logprob, rank, list(zip(ids[:width], logprobs[:width], strict=True)))
        return found


class Sampler:
    """Samples for `rows` slots. With a `seed`, requests without one of their own repeat from run to run.

    With `deterministic` a row's log-probabilities are the same bits whatever other rows there are.
    """

    def __init__(
        self,
        rows: int,
        vocab: int,
        device: torch.device | str,
        seed: int | None = None,
        deterministic: bool = False,
    ):
        self.vocab, self.device = vocab, torch.device(device)
        self.deterministic = deterministic
        rows += 1  # the last slot is nobody's: rows that pad a graph draw with its settings, greedily
        self._random = np.random.default_rng(seed)
        self._features = np.zeros(rows, np.int64)
        self._widths = np.full(rows, -1, np.int64)
        self._prompts = np.zeros(rows, np.int64)
        self._floors = np.zeros(rows, np.int64)
        self._stops = np.zeros((rows, 1), np.int64)
        self._floats = np.zeros((6, rows), np.float32)
        self._ints = np.zeros((2, rows), np.int64)  # top_k, seed
        self._stale = False
        self._draws: dict[tuple[bytes, int], Draws | None] = {}  # since somebody came or went
        self._floats_PR = self._mirror(self._floats)
        self._ints_PR = self._mirror(self._ints)
        self.knobs = Knobs(self._floats_PR[:REPETITION], self._ints_PR)  # by slot, as of the last `flush`
        self._bias = Strips(rows, (vocab,), torch.float32, 0.0, self.device)
        self._counts = Strips(rows, (vocab,), torch.int32, 0, self.device)
        self._words = Strips(rows, (1, 2), torch.int64, -1, self.device)  # [B, L] a word's last token first
        self._recent = Strips(rows, (1,), torch.int64, -2, self.device)  # [L - 1] the newest token first

    @torch.inference_mode()
    def admit(self, slot: int, request: Request, tokens: Sequence[int]) -> None:
        """The slot belongs to this request from now on. `tokens`: its prompt and all it has generated so far.

        No sample of the request may be in flight. A request that had the slot before is forgotten.
        """
        self.release(slot)
        params = request.params
        output = tokens[len(request.prompt) :]
        self._floats[:, slot] = (
            0 if params.greedy else 1 / params.temperature,
            math.log(1 / params.min_p) if params.min_p else math.inf,
            params.top_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        seed = int(self._random.integers(2**63)) if params.seed is None else params.seed
        self._ints[:, slot] = (params.top_k if 0 < params.top_k < self.vocab else 0, seed)
        self._stale = True
        width = -1 if params.logprobs is None else params.logprobs
        self._widths[slot] = self.vocab if params.logprobs == -1 else min(width, self.vocab)
        self._prompts[slot], self._floors[slot] = len(request.prompt), params.min_tokens
        self._features[slot] = (
            self._admit_bias(slot, request)
            | self._admit_penalties(slot, request, output)
            | self._admit_words(slot, request, output)
            | self._admit_floor(slot, request)
            | (GRAMMAR if request.grammar is not None else 0)
        )

    def release(self, slot: int) -> None:
        """Forget the slot's request. Steps in flight are not disturbed."""
        self._draws.clear()
        self._features[slot] = 0
        self._widths[slot] = -1
        for strips in (self._bias, self._counts, self._words, self._recent):
            strips.take_back(slot)

    @torch.inference_mode()
    def sample(
        self, logits_SV: Tensor, slots: np.ndarray, positions: np.ndarray, masks: Masks | None = None
    ) -> Samples:
        """Draw a token for each row; its logits (float32) are overwritten.

        slots [S], no two alike where a request counts tokens (penalties, bad words of several); positions [S] in their
        sequences of the tokens to be drawn (the first of all is 0).
        Rows that `masks` names draw nothing else than it allows, whatever they ask for.
        """
        assert logits_SV.shape == (len(slots), self.vocab)
        self.flush()
        features = self._features[slots]
        present = int(np.bitwise_or.reduce(features)) if len(slots) else 0
        wanted = np.flatnonzero(self._widths[slots] >= 0)
        raw_RV = self._raw(logits_SV, wanted, bool(present)) if len(wanted) else None
        if present:
            logits_SV = logits_SV.contiguous()
            self._edit(logits_SV, features, slots, positions)
            if masks is not None:
                forbid(logits_SV, self._send(masks.rows), masks.bits.to(self.device, non_blocking=True))
        draws = self._draws_of(slots)
        settings = None
        if not draws.greedy:
            slots_S, positions_S = self._send(np.stack((slots, positions)))
            settings = Knobs(*(table.index_select(1, slots_S) for table in self.knobs)).settings(positions_S)
        tokens = draw(logits_SV, settings, draws)
        if present & (PENALTY | WORDS):
            self._remember(tokens, features, slots)
        if raw_RV is None:
            return Samples(tokens)
        widths = self._widths[slots[wanted]]
        found = _ranked(raw_RV, tokens[self._send(wanted)], int(widths.max()), self.deterministic)
        return Samples(tokens, Ranked(wanted, widths, *map(_to_host, found)))

    def draws(self, slots: np.ndarray, besides: int = 0) -> Draws | None:
        """How these slots draw if that, and `besides`, is all they ask for; None where more is to be done."""
        name = slots.tobytes(), besides
        if name not in self._draws:
            plain = not (self._features[slots] & ~besides).any() and (self._widths[slots] < 0).all()
            self._draws[name] = self._draws_of(slots) if plain else None
        return self._draws[name]

    def _draws_of(self, slots: np.ndarray) -> Draws:
        floats = self._floats[:, slots]
        return Draws.of(floats[SCALE], floats[REACH], self._ints[0, slots], floats[TOP_P])

    @torch.inference_mode()
    def prompt_logprobs(self, logits_TV: Tensor, targets_T: Tensor, k: int) -> PromptLogprobs:
        """Log-probabilities of given tokens int64 [T] by the logits [T, V] before them; k of the likeliest, -1: all."""
        count = len(targets_T)
        widths = np.full(count, min(k, logits_TV.shape[1]) if k >= 0 else logits_TV.shape[1])
        found = _ranked(logits_TV, targets_T, int(widths[0]) if count else 0, self.deterministic)
        lists = Samples(targets_T, Ranked(np.arange(count), widths, *found)).lists()
        return [entry for entry in lists or () if entry is not None]

    # -- what a slot asks for

    def _admit_bias(self, slot: int, request: Request) -> int:
        params = request.params
        single = [word[0] for word in request.bad if len(word) == 1]
        if not (params.logit_bias or single or params.allowed_token_ids is not None):
            return 0
        strip_V = self._bias.lend(slot, (self.vocab,))
        if params.allowed_token_ids is not None:
            strip_V.fill_(-math.inf)[self._send(params.allowed_token_ids)] = 0.0
        if params.logit_bias:
            added = self._send(tuple(params.logit_bias.values()), np.float32)
            strip_V[self._send(tuple(params.logit_bias))] += added
        if single:
            strip_V[self._send(single)] += FORBIDDEN
        return BIAS

    def _admit_penalties(self, slot: int, request: Request, output: Sequence[int]) -> int:
        params = request.params
        if params.repetition_penalty == 1 and not (params.presence_penalty or params.frequency_penalty):
            return 0
        strip_V = self._counts.lend(slot, (self.vocab,))
        strip_V[self._send(request.prompt)] = PROMPT
        made = self._send(output)
        strip_V.index_add_(0, made, torch.ones_like(made, dtype=torch.int32))
        return PENALTY

    def _admit_words(self, slot: int, request: Request, output: Sequence[int]) -> int:
        words = [word for word in request.bad if len(word) > 1]
        if not words:
            return 0
        longest = max(map(len, words))
        backwards = [[*word[::-1], *[-1] * (longest - len(word))] for word in words]
        self._words.lend(slot, (len(words), longest))[: len(words), :longest] = self._send(backwards)
        strip_L = self._recent.lend(slot, (self._words.table.shape[2] - 1,))
        newest = output[::-1][: len(strip_L)]
        strip_L[: len(newest)] = self._send(newest)
        return WORDS

    def _admit_floor(self, slot: int, request: Request) -> int:
        stops = sorted(request.stop_ids | request.eos_ids)
        if not request.params.min_tokens or not stops:
            return 0
        if (more := len(stops) - self._stops.shape[1]) > 0:
            self._stops = np.pad(self._stops, ((0, 0), (0, more)), mode="edge")
        self._stops[slot] = stops[0]
        self._stops[slot, : len(stops)] = stops
        return FLOOR

    # -- one step

    def _edit(
        self, logits_SV: Tensor, features: np.ndarray, slots: np.ndarray, positions: np.ndarray
    ) -> None:
        """Masks, then penalties, in place."""
        if len(rows := np.flatnonzero(features & BIAS)):
            strips = self._send(self._bias.of[slots[rows]])
            logits_SV.index_add_(0, self._send(rows), self._bias.table[strips])
        if len(rows := np.flatnonzero(features & WORDS)):
            self._forbid_words(logits_SV, rows, slots[rows])
        early = positions - self._prompts[slots] < self._floors[slots]
        if len(rows := np.flatnonzero((features & FLOOR > 0) & early)):
            cells = self._send(rows[:, None] * self.vocab + self._stops[slots[rows]]).view(-1)
            logits_SV.view(-1).index_add_(0, cells, logits_SV.new_full(cells.shape, FORBIDDEN))
        if len(rows := np.flatnonzero(features & PENALTY)):
            self._penalize(logits_SV, rows, slots[rows])

    def _forbid_words(self, logits_SV: Tensor, rows: np.ndarray, slots: np.ndarray) -> None:
        """Forbid the last token of every bad word whose other tokens were generated last."""
        words_RBL = self._words.table[self._send(self._words.of[slots])]
        recent_RL = self._recent.table[self._send(self._recent.of[slots])][:, : words_RBL.shape[2] - 1]
        before = words_RBL[:, :, 1:]
        said_RB = ((before < 0) | (before == recent_RL[:, None])).all(-1) & (words_RBL[:, :, 0] >= 0)
        cells = self._send(rows)[:, None] * self.vocab + words_RBL[:, :, 0].clamp(min=0)
        logits_SV.view(-1).index_add_(0, cells.view(-1), (said_RB * FORBIDDEN).view(-1))

    def _penalize(self, logits_SV: Tensor, rows: np.ndarray, slots: np.ndarray) -> None:
        """Repetition (Keskar et al. 2019, section 4.1) over prompt and output, the others over the output."""
        at = self._send(rows)
        counts = self._counts.table[self._send(self._counts.of[slots])]
        repetition, presence, frequency = self._floats_PR[REPETITION:, self._send(slots)][:, :, None]
        x = logits_SV[at]
        if (self._floats[REPETITION, slots] != 1).any():
            x = torch.where(counts > 0, torch.where(x > 0, x / repetition, x * repetition), x)
        if self._floats[PRESENCE:, slots].any():
            made = counts.bitwise_and_(PROMPT - 1)
            x.sub_(made * frequency).sub_((made > 0) * presence)
        logits_SV.index_copy_(0, at, x)

    def _remember(self, tokens: Tensor, features: np.ndarray, slots: np.ndarray) -> None:
        """What was drawn counts from the next step on."""
        if len(rows := np.flatnonzero(features & PENALTY)):
            cells = self._send(self._counts.of[slots[rows]]) * self.vocab + tokens[self._send(rows)]
            self._counts.table.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        if len(rows := np.flatnonzero(features & WORDS)):
            strips = self._send(self._recent.of[slots[rows]])
            older = self._recent.table[strips][:, :-1]
            self._recent.table[strips] = torch.cat((tokens[self._send(rows)][:, None], older), 1)

    def _raw(self, logits_SV: Tensor, rows: np.ndarray, edited: bool) -> Tensor:
        """The rows' logits as the model gave them; a copy where these are about to change."""
        if len(rows) < len(logits_SV):
            return logits_SV[self._send(rows)]
        return logits_SV.clone() if edited else logits_SV

    # -- host and device

    def _mirror(self, table: np.ndarray) -> Tensor:
        """The table on the device; on a CPU the very same memory."""
        return torch.from_numpy(table).to(self.device)

    def flush(self) -> None:
        """Bring the device's tables up to date with the slots admitted since; call before a step that draws."""
        if self._stale and self.device.type != "cpu":
            for table, mirror in ((self._floats, self._floats_PR), (self._ints, self._ints_PR)):
                mirror.copy_(torch.from_numpy(table).pin_memory(), non_blocking=True)
        self._stale = False

    def _send(
        self,
        numbers: np.ndarray | Sequence[float] | Sequence[Sequence[int]],
        kind: type[np.generic] = np.int64,
    ) -> Tensor:
        """Numbers as a tensor on the device, without waiting for the device."""
        tensor = torch.from_numpy(np.asarray(numbers, kind))
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _ranked(
    logits_NV: Tensor, targets_N: Tensor, k: int, one_by_one: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each target's log-probability and rank [N]; ids and log-probabilities [N, k] of the likeliest."""
    if one_by_one and len(logits_NV):  # copied, so that each begins where memory is aligned
        total = torch.stack([row.clone().logsumexp(-1, keepdim=True) for row in logits_NV])
    else:
        total = logits_NV.logsumexp(-1, keepdim=True)
    chosen = logits_NV.gather(-1, targets_N[:, None])
    rank = (logits_NV > chosen).sum(-1) + 1
    most, ids = logits_NV.topk(k, -1)
    return (chosen - total)[:, 0], rank, ids, most - total


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, complete when the device has done all that was enqueued until now."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
