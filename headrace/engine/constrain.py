"""Requests with a grammar inside the engine: they wait until it is compiled, and every step brings them masks.

S rows of a step that sample, M of them under a grammar, W 32-bit words of a mask, V vocabulary.
"""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.engine.beside import Beside, Work
from headrace.engine.grammar import Compiler, Matcher, mask_of
from headrace.engine.request import Request
from headrace.engine.scheduler import Row
from headrace.engine.sequence import Sequence

if TYPE_CHECKING:
    from llguidance import LLMatcher

log = logging.getLogger(__name__)

SLOW_STEP = 0.05
"""Seconds. If a step waits longer for its masks, those of the next are timed one by one, to see whose fault it is."""
SLOW_MASK = 0.01
"""Seconds of computing time. A request whose mask takes longer has a strike."""
BESIDE = 8
"""Rows whose masks take longer than having another thread begin with them."""
STRIKES = 3
"""With so many a request is ended: an ambiguous grammar takes ever longer, and everybody waits for its masks."""

End = tuple[str, str]
"""A request's id, and how it ends."""


class Masks(NamedTuple):
    """Which tokens may come: rows int64 [M] among those that sample, bits int32 [M, W] in host memory.

    Bit i of word w stands for the token 32 * w + i. `bits` is overwritten for the step after.
    """

    rows: np.ndarray
    bits: Tensor


_Open = tuple[int, Sequence, Matcher]
"""A row that samples under a grammar: the number of its token among all that are sampled, and whose it is."""


class Constraints:
    """What the engine knows of grammars. `compiler` None: without a tokenizer there are none.

    waiting   requests whose grammar is being compiled      used   whether there ever was one
    """

    def __init__(self, compiler: Compiler | None, rows: int, pinned: bool = False):
        self.compiler, self.rows, self.pinned = compiler, rows, pinned
        self.waiting: dict[str, tuple[Request, Future[LLMatcher]]] = {}
        self.used = False
        self._bits: Tensor | None = None
        self._found: list[_Open] = []
        self._over: list[End] = []
        self._filling: Work | None = None
        self._beside = Beside()
        self._ends: dict[int, np.int32] = {}
        self._wary = False

    # -- until the grammar is there

    def order(self, request: Request) -> None:
        """Have the request's grammar compiled. Raises Refused if there can be none."""
        if self.compiler is None or request.grammar is None:
            raise Refused(
                "structured output needs a tokenizer, and this model has none", param="structured_outputs"
            )
        self.waiting[request.id] = request, self.compiler.start(request.grammar.source)
        self.used = True

    def ready(self) -> tuple[list[tuple[Request, Matcher]], list[str]]:
        """Requests that may start now, and those whose grammar is none."""
        found: list[tuple[Request, Matcher]] = []
        failed: list[str] = []
        for id, (request, future) in list(self.waiting.items()):
            if not future.done():
                continue
            del self.waiting[id]
            try:
                found.append((request, self.matcher(request, future.result())))
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends one request and not all
                log.warning("request %s: %s", id, error)
                failed.append(id)
        return found, failed

    def wait(self, seconds: float) -> None:
        """Until one of them is compiled, or the time is over."""
        wait([future for _, future in self.waiting.values()], seconds, FIRST_COMPLETED)

    def matcher(self, request: Request, compiled: "LLMatcher") -> Matcher:
        """At the beginning of the request's answer."""
        assert self.compiler is not None and request.grammar is not None
        compiler, allowed = self.compiler, request.params.allowed_token_ids
        barred = tuple(id for id in compiler.ends if id not in request.stop_ids)
        keep = None
        if allowed is not None:
            keep, barred = mask_of(tuple(set(allowed) - set(barred)), compiler.words), ()
        return Matcher(compiled, request.grammar, compiler, len(request.prompt), keep, barred)

    # -- one step

    def concern(self, step: list[Row]) -> bool:
        """Whether the step's samples must wait for masks."""
        return self.used and any(row.samples and row.seq.matcher is not None for row in step)

    def follow(self, step: list[Row]) -> list[End]:
        """Take what a committed step has brought. Requests that end although the step did not end them."""
        found, ends = self._advance(self._open(step))
        for _, seq, matcher in found:
            if (finish := matcher.end()) is not None:
                ends.append(_end(seq, finish))
        return ends

    def begin(self, step: list[Row], beside: bool = False) -> None:
        """Have masks made for a step all of whose earlier samples are committed, `beside` what the caller does next.

        Matchers take what is new to them first, if `follow` was not called. They are nobody else's until `masks`, which
        is to follow.
        """
        self._found, self._over = self._advance(self._open(step))
        self._filling = self._fill([matcher for _, _, matcher in self._found]) if self._found else None
        if beside and self._filling and len(self._found) >= BESIDE and not self._wary:
            self._beside.start(self._filling)

    def masks(self) -> tuple[Masks | None, list[End]]:
        """Of the step that was begun; and requests that end with what they have."""
        if self._filling is None:
            return None, self._over
        began = perf_counter()
        if self._beside.busy:
            self._beside.wait()
        else:
            self._filling()
        self._wary, self._filling = perf_counter() - began > SLOW_STEP, None
        assert self._bits is not None
        found, bits = self._found, self._bits[: len(self._found)]
        ends = self._over + self._settle(found, bits)
        return Masks(np.array([n for n, _, _ in found], np.int64), bits), ends

    def drop(self) -> None:
        """What was begun is not wanted any more. Returns once it is over, as it has the matchers until then."""
        if self._beside.busy:
            beside = self._beside
            self._beside, self._bits = Beside(), None  # also if this wait is interrupted
            with suppress(Exception):
                beside.wait()
        self._found, self._over, self._filling = [], [], None

    @staticmethod
    def _open(step: list[Row]) -> list[_Open]:
        found: list[_Open] = []
        n = 0
        for row in step:
            if row.samples:
                seq = row.seq
                if (matcher := seq.matcher) is not None and not seq.finished:
                    found.append((n, seq, matcher))
                n += 1 + len(row.draft)
        return found

    def _advance(self, found: list[_Open]) -> tuple[list[_Open], list[End]]:
        """Let matchers take what is new to them. Who goes on, and who ends.

        Of who took one token nobody was asked whether it ends: asking them all takes longer than all the rest.
        """
        ends: list[End] = []
        pairs: list[tuple[LLMatcher, int]] = []
        for _, seq, matcher in found:
            tokens = seq.tokens
            new = len(tokens) - matcher.upto
            if new == 1 and matcher.bound and matcher.opens is None:
                pairs.append((matcher.ll, tokens[-1]))
                matcher.upto += 1
            elif new and (finish := matcher.follow(tokens)) is not None:
                ends.append(_end(seq, finish))
        if pairs:
            assert self.compiler is not None
            self.compiler.executor.consume_token_par(pairs)
        if ends:
            over = {id for id, _ in ends}
            found = [one for one in found if one[1].request.id not in over]
        return found, ends

    def _fill(self, matchers: list[Matcher]) -> Work:
        """What makes masks [M, W] by the grammars alone, all of them at once."""
        assert self.compiler is not None
        if self._bits is None:  # one is enough: when it is filled again, the step that read it is over
            self._bits = torch.zeros(
                (self.rows, self.compiler.words), dtype=torch.int32, pin_memory=self.pinned
            )
            self._ends = _by_word(self.compiler.ends)
        bits, count, size = self._bits[: len(matchers)], len(matchers), self.compiler.words * 4
        if self._wary:
            return lambda: self._fill_one_by_one(matchers, bits)
        bound = [(matcher.ll, n) for n, matcher in enumerate(matchers) if matcher.bound]
        fill = self.compiler.executor.unsafe_compute_mask_ptr
        # `bits` itself, and not where they are: they must be there as long as they may be written.
        return lambda: fill(bound, bits.data_ptr(), size, count) if bound else None

    def _fill_one_by_one(self, matchers: list[Matcher], bits: Tensor) -> None:
        for n, matcher in enumerate(matchers):
            if not matcher.bound:
                continue
            began = thread_time()
            matcher.ll.unsafe_compute_mask_ptr(bits[n].data_ptr(), bits.shape[1] * 4)
            if thread_time() - began > SLOW_MASK:
                matcher.strikes += 1
                matcher.plain = False

    def _settle(self, found: list[_Open], bits: Tensor) -> list[End]:
        """Adapt masks to the rest of what requests say; who ends because nothing may come, or all wait for it."""
        masks = bits.numpy()
        over: list[End] = []
        for i in [i for i, (_, _, matcher) in enumerate(found) if not matcher.plain]:
            _, seq, matcher = found[i]
            if matcher.strikes >= STRIKES:
                over.append(_end(seq, "error"))
                masks[i] = 0
            elif not (matcher.bound and matcher.ll.is_stopped()) and not matcher.adapt(masks[i]):
                over.append(_end(seq, matcher.last()))
        # The mask of a matcher that has stopped, or failed, allows ends alone.
        for i in _allowing(self._ends, masks):
            _, seq, matcher = found[i]
            if matcher.bound and matcher.ll.is_stopped():
                over.append(_end(seq, matcher.end()))
            elif matcher.barred and not matcher.bar(masks[i]):
                over.append(_end(seq, matcher.last()))
        return over


def _by_word(ids: tuple[int, ...]) -> dict[int, np.int32]:
    """Their bits, by the word of a mask in which they lie."""
    bits: dict[int, np.int32] = {}
    for id in ids:
        bits[id // 32] = bits.get(id // 32, np.int32(0)) | np.uint32(1 << id % 32).view(np.int32)
    return bits


def _allowing(bits: dict[int, np.int32], masks_MW: np.ndarray) -> list[int]:
    """Which masks have any of these bits, given by word."""
    found: set[int] = set()
    for word, ids in bits.items():
        found.update((masks_MW[:, word] & ids).nonzero()[0].tolist())
    return sorted(found)


def _end(seq: Sequence, finish: str | None) -> End:
    """Log why a request ends with an error, which its client is not told."""
    assert finish is not None and seq.matcher is not None
    if finish == "error":
        reason = seq.matcher.ll.get_error().partition("\n")[0][:200]
        if seq.matcher.strikes >= STRIKES:
            reason = "it is so ambiguous that others wait for it"
        reason = reason or "no token is allowed both by it and by allowed_token_ids"
        log.warning("request %s cannot follow its grammar and is ended: %s", seq.request.id, reason)
    return seq.request.id, finish
