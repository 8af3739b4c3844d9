"""Who runs next, and how far. No torch, no clock, no I/O: the same calls give the same answers."""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Set
from typing import NamedTuple

import msgspec

from headrace.base.errors import Refused, TooLong
from headrace.engine.blocks import VOID, BlockPool, blocks_for
from headrace.engine.draft import Drafter, may_draft
from headrace.engine.policy import Key, arrival
from headrace.engine.request import Event, Logprobs, PromptLogprobs, Request
from headrace.engine.sequence import Sequence
from headrace.engine.tally import Counts

OVERTAKEN = 64
"""Requests in line that others may overtake in a step, at the most: each is looked at."""


class NewBlocks(NamedTuple):
    """Blocks the device has not been told of: per layer group, ids for table entries from `at` on."""

    at: int
    ids: list[list[int]]


class Row(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step: positions start..stop-1.

    `feeds`: the (only) input token is the one the device sampled last for this slot. `draft`: guesses that stand at
    the last positions, behind a token that is known; such a row samples at each of them, and before the first.
    """

    seq: Sequence
    epoch: int
    slot: int
    start: int
    stop: int
    samples: bool
    feeds: bool
    new: NewBlocks | None
    draft: tuple[int, ...] = ()

    @property
    def sampled(self) -> int:
        """How many tokens the step samples for it."""
        return 1 + len(self.draft) if self.samples else 0


class Outcome(NamedTuple):
    """What a step returned: what rows sampled, in row order; the rest only where asked for.

    `prompt_logprobs` maps a row's number to what it learned about the prompt's tokens start+1..stop.
    """

    tokens: list[int]
    logprobs: list[Logprobs | None] | None = None
    prompt_logprobs: dict[int, PromptLogprobs] | None = None


class Scheduler:
    """There is no prefill and no decode. A sequence is `pending` tokens behind; catch it up.

    A step has up to `max_rows` sequences, and up to `max_tokens` tokens of those that are several behind and guesses:
    no prompt is cut for rows that decode. `key` orders sequences: the first goes first, the last gives way when blocks
    run out. `speculate`: how many tokens of a sequence may be guessed at once.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_tokens: int,
        max_rows: int,
        key: Callable[[Sequence], Key] = arrival,
        prefix_cache: bool = True,
        speculate: int = 0,
    ):
        self.pool, self.max_tokens, self.max_rows = pool, max_tokens, max_rows
        self.key, self.prefix_cache, self.speculate = key, prefix_cache, speculate
        self.running: list[Sequence] = []  # in the order of `key`
        self.waiting: list[Sequence] = []
        self.live: dict[str, Sequence] = {}
        self.slots = list(range(max_rows - 1, -1, -1))
        self.counts = Counts()
        self._orders = 0
        self._windows = any(group.window is not None for group in pool.groups)

    def add(self, request: Request) -> None:
        """Put a request in line. Raises TooLong if it could not run even alone, Refused if its id is in use."""
        self.check(request)
        seq = Sequence(request, self._orders, len(self.pool.groups))
        self._orders += 1
        if self.speculate and may_draft(request):
            seq.drafter = Drafter()
        self.live[request.id] = seq
        insort(self.waiting, seq, key=self.key)

    def check(self, request: Request) -> None:
        """Raise what `add` would."""
        if request.id in self.live:
            raise Refused(f"request id {request.id!r} is in use", param="request_id")
        if (need := self._worst(request.longest)) > self.pool.count:
            raise TooLong(
                f"prompt of {len(request.prompt)} and up to {request.max_tokens} new tokens need {need} KV blocks"
                f" of {self.pool.size} tokens; there are {self.pool.count}"
            )

    def plan(self, only: Set[Sequence] | None = None) -> list[Row]:
        """The next step. May be called again before this one is committed. `only`: nobody else takes part."""
        picked: dict[Sequence, int] = {}
        budget, at = self.max_tokens, 0  # `at`: the place in line
        for seq in list(self.running):
            if only is not None and seq not in only:
                continue
            count = 1 if seq.pending == 1 else min(seq.pending, budget)
            if count and seq.slot >= 0 and self._grow(seq, count):
                picked[seq] = count
                budget -= self._cost(seq, count)
        while budget and at < len(self.waiting) and (only is None or self.waiting[at] in only):
            if at < OVERTAKEN and self._begins_alike(self.waiting[at], picked):
                at += 1
            elif (new := self._admit(at, budget)) is not None:
                picked[new] = min(new.pending, budget)
                budget -= self._cost(new, picked[new])
            elif (victim := self._gives_way(at)) is not None:
                budget += self._cost(victim, picked.pop(victim, 0))
                self._evict(victim)
            else:
                break
        left = [(seq, count) for seq, count in picked.items() if seq.slot >= 0]
        if not (self.speculate and budget and all(count == 1 for _, count in left)):
            return [self._issue(seq, count) for seq, count in left]
        drafts = self._draft([seq for seq, _ in left], budget)
        return [self._issue(seq, count, drafts.get(seq, ())) for seq, count in left]

    def commit(self, step: list[Row], outcome: Outcome, events: list[Event] | None = None) -> list[Event]:
        """Samples come back in row order, steps in the order they were planned.

        Adds to `events`, if given, row by row: what is in there is true even if a later row raises.
        """
        events = [] if events is None else events
        tokens, logprobs, scores = outcome
        if scores:
            events += self.score(step, scores)
        at = 0
        for row in step:
            seq, draft = row.seq, row.draft
            if row.epoch == seq.epoch:  # else its memory was taken away meanwhile
                self._confirm(seq, row.stop - len(draft))
            if not row.samples:
                continue
            seq.owed -= 1
            if not seq.finished:
                self._take(seq, tokens[at], logprobs[at] if logprobs else None, events)
                if draft:
                    behind = slice(at, at + 1 + len(draft))
                    self._take_guessed(row, tokens[behind], logprobs and logprobs[behind], events)
            at += 1 + len(draft)
        return events

    def score(self, step: list[Row], scores: dict[int, PromptLogprobs]) -> Iterator[Event]:
        """What rows learned of their prompts, less what was told before: by an earlier call, or before an eviction."""
        for n, found in scores.items():
            seq = step[n].seq
            new = found[max(0, seq.scored - step[n].start) :]
            if new and not seq.finished:
                seq.scored += len(new)
                yield Event(seq.request.id, None, prompt_logprobs=new, scheduled=self._first_time(seq))

    def rewind(self, seqs: Iterable[Sequence]) -> None:
        """Steps in flight that these were part of are lost: go back to what was confirmed."""
        for seq in seqs:
            seq.owed = 0
            if seq.slot < 0:
                continue  # evicted meanwhile: it starts anew in any case
            seq.epoch += 1
            seq.shown, seq.fed = 0, False
            seq.issued = seq.computed = min(seq.computed, len(seq.tokens) - 1)
            if any(
                passed > kind.first_visible(seq.issued) // self.pool.size
                for kind, passed in zip(self.pool.groups, seq.passed, strict=True)
            ):
                self._evict(seq)  # blocks that it would need again were given back

    def cancel(self, id: str, finish: str = "abort") -> Event | None:
        """End a request now; its blocks are free for the next plan. None if it is not (or no longer) here."""
        if (seq := self.live.get(id)) is None:
            return None
        seq.finished = finish
        self._retire(seq)
        return Event(id, None, finish, cached=seq.cached, evictions=seq.evictions)

    # -- one sequence ---------------------------------------------------------------------------

    def _take(self, seq: Sequence, token: int, logprobs: Logprobs | None, events: list[Event]) -> None:
        """Append what was sampled."""
        id, finish = seq.request.id, seq.append(token)
        stop = token if finish == "stop" else None
        first = None if seq.told else self._first_time(seq)
        events.append(Event(id, token, finish, stop, logprobs, None, seq.cached, first, seq.evictions))
        if finish:
            self._retire(seq)

    def _take_guessed(
        self, row: Row, tokens: list[int], logprobs: list[Logprobs | None] | None, events: list[Event]
    ) -> None:
        """Append what a row sampled behind each right guess; its first token is taken."""
        seq, draft = row.seq, row.draft
        right = 0
        while right < len(draft) and draft[right] == tokens[right]:
            right += 1
        for n in range(1, right + 1):
            if seq.finished:
                break
            if row.epoch == seq.epoch:
                self._confirm(seq, row.stop - len(draft) + n)
            self._take(seq, tokens[n], logprobs[n] if logprobs else None, events)
        self.counts.accept(right)
        if row.epoch == seq.epoch:  # what was computed for wrong guesses is written over
            seq.issued, seq.fed = seq.computed, False

    @staticmethod
    def _first_time(seq: Sequence) -> float | None:
        """When it was scheduled, said once."""
        if seq.told:
            return None
        seq.told = True
        return seq.scheduled

    @staticmethod
    def _cost(seq: Sequence, count: int) -> int:
        """What `count` tokens take of a step's: nothing where a single one is missing."""
        return 0 if seq.pending == 1 else count

    def _begins_alike(self, seq: Sequence, picked: dict[Sequence, int]) -> bool:
        """Whether a block it needs is being computed for another: there a step later, if no window takes it away."""
        if self._windows or not (self.slots and self.prefix_cache and seq.request.cacheable):
            return False
        size, keys = self.pool.size, seq.name_blocks(self.pool.size)
        most = (len(seq.tokens) - 1) // size
        for other, count in picked.items():
            first = other.computed // size
            if first >= min((other.issued + count) // size, most):
                continue
            # Names are chains: who has the same one has all before it.
            names = other.name_blocks(size)
            if names[first : first + 1] == [keys[first]] and keys[first] not in self.pool.named[0]:
                return True
        return False

    def _admit(self, at: int, budget: int) -> Sequence | None:
        seq = self.waiting[at]
        if seq.owed or not self.slots:
            return None
        seq.blocks = self._match(seq)
        for ids in seq.blocks:
            self.pool.hold(ids)
        seq.issued = seq.computed = len(seq.blocks[0]) * self.pool.size
        lacking = self._worst(seq.length) - sum(i != VOID for ids in seq.blocks for i in ids)
        if lacking > self.pool.free and (
            self.running or self._need(seq, min(seq.pending, budget)) > self.pool.free
        ):
            self._release(seq)
            return None
        if seq.evictions:
            self.counts.recomputed_tokens += seq.length - seq.issued
        else:
            seq.cached = seq.issued
            self.counts.begin(len(seq.request.prompt), seq.cached)
        del self.waiting[at]
        seq.slot = self.slots.pop()
        insort(self.running, seq, key=self.key)
        grown = self._grow(seq, min(seq.pending, budget))
        assert grown, "admission looked for room before"
        return seq

    def _match(self, seq: Sequence) -> list[list[int]]:
        if not (self.prefix_cache and seq.request.cacheable):
            return [[] for _ in self.pool.groups]
        size = self.pool.size
        # The last token must run.
        return self.pool.match(seq.name_blocks(size)[: (len(seq.tokens) - 1) // size])

    def _draft(self, seqs: list[Sequence], budget: int) -> dict[Sequence, tuple[int, ...]]:
        """Guesses for sequences that are behind by one known token, within the budget and the blocks that are free."""
        drafts: dict[Sequence, tuple[int, ...]] = {}
        budget = min(budget, max(self.max_rows, 1 + self.speculate) - len(seqs))
        for seq in seqs:
            most = min(self.speculate, budget, seq.longest - seq.length - 1)
            if seq.drafter is None or most < 1 or seq.owed or seq.pending != 1:
                continue
            draft = seq.drafter.draft(seq.tokens, most, len(seqs))
            if draft and self._need(seq, 1 + len(draft)) <= self.pool.free:
                self._take_blocks(seq, 1 + len(draft))
                drafts[seq] = tuple(draft)
                budget -= len(draft)
                self.counts.draft(len(draft))
        return drafts

    def _issue(self, seq: Sequence, count: int, draft: tuple[int, ...] = ()) -> Row:
        start, epoch, shown = seq.issued, seq.epoch, len(seq.blocks[0])
        seq.issued = stop = start + count + len(draft)
        new = None
        if seq.shown < shown:
            new = NewBlocks(seq.shown, [ids[seq.shown :] for ids in seq.blocks])
            seq.shown = shown
        feeds = seq.fed and not draft
        if samples := stop >= len(seq.tokens) + seq.owed:
            seq.owed += 1
            seq.fed = True
        return Row(seq, epoch, seq.slot, start, stop, samples, feeds, new, draft)

    def _confirm(self, seq: Sequence, stop: int) -> None:
        size, before, seq.computed = self.pool.size, seq.computed, stop
        first, last = before // size, stop // size
        if first == last or not (self.prefix_cache and seq.slot >= 0):
            return
        keys = seq.name_blocks(size)
        for group, ids in enumerate(seq.blocks):
            for n in range(first, last):
                if ids[n] != VOID:
                    self.pool.seal(ids[n], keys[n], group)

    def _retire(self, seq: Sequence) -> None:
        del self.live[seq.request.id]
        if seq.slot >= 0:
            self.running.remove(seq)
            self._release(seq)
        else:
            self.waiting.remove(seq)  # cancelled, or evicted and then finished by a sample still in flight

    # -- memory ---------------------------------------------------------------------------------

    def _need(self, seq: Sequence, count: int) -> int:
        pool = self.pool
        lacking = seq.issued + count - len(seq.blocks[0]) * pool.size
        # Less than none where blocks of wrong guesses are still here.
        return -(-lacking // pool.size) * len(pool.groups) if lacking > 0 else 0

    def _worst(self, length: int) -> int:
        """The most blocks a sequence holds at once on its way to `length` tokens."""
        return blocks_for(self.pool.groups, length, self.pool.size, self.max_tokens)

    def _grow(self, seq: Sequence, count: int) -> bool:
        """Room for `count` more tokens, evicting the last in order if need be; False if that was itself."""
        if self._windows:
            self._pass_window(seq)
        if seq.issued + count <= len(seq.blocks[0]) * self.pool.size:
            return True
        while self._need(seq, count) > self.pool.free:
            victim = self.running[-1]
            self._evict(victim)
            if victim is seq:
                return False
        self._take_blocks(seq, count)
        return True

    def _take_blocks(self, seq: Sequence, count: int) -> None:
        if need := self._need(seq, count):
            share = need // len(self.pool.groups)
            ids = self.pool.take(need)
            for group, blocks in enumerate(seq.blocks):
                blocks += ids[group * share : (group + 1) * share]

    def _pass_window(self, seq: Sequence) -> None:
        """Give back blocks that no query from `issued` on can see."""
        for group, (kind, ids) in enumerate(zip(self.pool.groups, seq.blocks, strict=True)):
            if kind.window is None:
                continue
            first, last = seq.passed[group], min(kind.first_visible(seq.issued) // self.pool.size, len(ids))
            if first < last:
                self.pool.drop(ids[first:last])
                ids[first:last] = [VOID] * (last - first)
                seq.passed[group] = last

    def _gives_way(self, at: int) -> Sequence | None:
        """A running sequence of a worse class than this one in line, if its leaving could help."""
        if not self.running or self.waiting[at].owed:
            return None
        victim = self.running[-1]
        return victim if self.key(self.waiting[at])[0] < self.key(victim)[0] else None

    def _evict(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)
        seq.evictions += 1
        self.counts.evictions += 1
        insort(self.waiting, seq, key=self.key)

    def _release(self, seq: Sequence) -> None:
        for ids in seq.blocks:
            self.pool.drop(ids)
        if seq.slot >= 0:
            self.slots.append(seq.slot)
        seq.blocks = [[] for _ in seq.blocks]
        seq.passed = [0] * len(seq.passed)
        seq.issued = seq.computed = seq.shown = 0
        seq.slot, seq.fed = -1, False
        seq.epoch += 1
