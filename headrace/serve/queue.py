"""Who may come in, and when there will be a place for those who may not: a forecast from measured speed."""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import NamedTuple

from headrace.base.errors import Busy
from headrace.serve.places import Places
from headrace.serve.wire import Facts, Stats

FRESH = 0.25
"""Seconds for which a forecast is used again."""

MEMORY = 0.1
"""Weight of the newest observation in what is remembered of step time and answer length."""

LONGEST = 600.0
"""Seconds: nobody is told to come back later than this."""


class Load(NamedTuple):
    """A request that is here: whether it has begun, tokens made and at most to be made, tokens of its prompt."""

    begun: bool
    made: int
    most: int
    prompt: int


class Queue:
    """Counts requests against the limits, which are those of all fronts together.

    most    requests that may be here: those one step can hold, and those that may wait
    tokens  prompt tokens of requests that have not begun
    """

    def __init__(self, places: Places | None = None):
        self.most = self.tokens = 0
        self.rows = self.step_tokens = 1
        self.places = places or Places()
        self._pace = 0.0
        self._fraction = 1.0  # of the tokens a request may have, how many it makes
        self._promised: deque[float] = deque()
        self._ends: list[float] = []
        self._looked = 0.0
        self._last: tuple[float, int] | None = None
        self._running = 0

    def meet(self, facts: Facts, queue: int, tokens: int | None) -> None:
        """Take limits for an engine, which counts from zero; `tokens` None is four times what its KV cache holds."""
        self.most, self.rows, self.step_tokens = facts.rows + queue, facts.rows, facts.tokens
        self.tokens = 4 * facts.kv_tokens if tokens is None else tokens
        self._pace = self._pace or facts.step_seconds
        self._last = None

    def fits(self, requests: int, prompt_tokens: int) -> bool:
        """Whether so many may come in. What is larger than a limit may come when nobody waits."""
        here, waiting, tokens = self.places.total
        if here + requests > self.most and here:
            return False
        return tokens + prompt_tokens <= self.tokens or not waiting

    def take(self, prompts: Sequence[int]) -> bool:
        """Let in requests with prompts of so many tokens: all of them, or none where they do not fit."""
        requests, tokens = len(prompts), sum(prompts)
        with self.places.alone():
            if fits := self.fits(requests, tokens):
                self.places.add(requests, requests, tokens)
        return fits

    def begin(self, prompt_tokens: int) -> None:
        """A request that had been let in was heard of for the first time."""
        self.places.add(0, -1, -prompt_tokens)

    def leave(self, begun: bool, prompt_tokens: int, part: float | None) -> None:
        """A request has ended; `part` of the tokens it might have made, where it came to an end of its own."""
        self.places.add(-1, 0 if begun else -1, 0 if begun else -prompt_tokens)
        if part is not None:
            self._fraction += MEMORY * (part - self._fraction)

    def learn(self, stats: Stats) -> None:
        """Take the engine's word on its speed."""
        now = stats.busy_seconds
        if self._last is not None and stats.steps > self._last[1]:
            seconds = (now - self._last[0]) / (stats.steps - self._last[1])
            self._pace += (MEMORY if self._pace else 1.0) * (seconds - self._pace)
        self._last = (now, stats.steps)
        self._running = stats.running

    def busy(self, requests: int, loads: Iterable[Load]) -> Busy:
        """The refusal for whoever does not fit: when the next place not yet promised to somebody gets free."""
        now = monotonic()
        if now - self._looked > FRESH:
            self._ends, self._looked = self._forecast(now, loads), now
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        at = self._end(len(self._promised) + requests - 1, now)
        at = max(at, self._promised[-1] if self._promised else at)
        if at < now + LONGEST:
            self._promised.extend([at] * requests)
        at = min(at, now + LONGEST)
        here, _, tokens = self.places.total
        full = here + requests > self.most
        return Busy(
            f"{here} requests are here and {self.most} are the most"
            if full
            else f"waiting prompts have {tokens} tokens and {self.tokens} are the most",
            retry_after=max(at - now, 0.1),
            hint="come back after the seconds that Retry-After says",
            limit="requests" if full else "tokens",
        )

    def _forecast(self, now: float, loads: Iterable[Load]) -> list[float]:
        """When each request that is here will have ended, in order."""
        pace = self._pace or 0.02
        running: list[float] = []
        waiting: list[float] = []
        for load in loads:
            left = max(1.0, load.most * self._fraction - load.made) * pace
            if load.begun:
                running.append(left)
            else:
                waiting.append(left + load.prompt / self.step_tokens * pace)
        # Where memory is short, fewer run at once than one step could hold; other fronts have their part of them.
        here, short, _ = self.places.total
        slots = min(self._running, self.rows) if short and self._running else self.rows
        slots = max(len(running), round(slots * (len(running) + len(waiting)) / max(here, 1)), 1)
        while len(running) < slots and waiting:
            running.append(waiting.pop(0))
        heapq.heapify(running)
        ends: list[float] = []
        for next_one in waiting:
            ends.append(heapq.heappop(running))
            heapq.heappush(running, ends[-1] + next_one)
        ends += sorted(running)
        return [now + end for end in ends]

    def _end(self, n: int, now: float) -> float:
        """When the n-th of them ends; beyond the last, at their average rate."""
        if not self._ends:
            return now + 1.0
        if n < len(self._ends):
            return self._ends[n]
        span = max(self._ends[-1] - self._looked, 0.01)
        return self._looked + span * (n + 1) / len(self._ends)
