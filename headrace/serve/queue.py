"""Who may come in, and when there will be a place for those who may not: a forecast from measured speed."""

import heapq
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import NamedTuple

from headrace.base.errors import Busy
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
    """Counts this front's requests against the limits.

    places   requests that may be here: those one step can hold, and those that may wait
    tokens   prompt tokens of requests that have not begun
    """

    def __init__(self, places: int, tokens: int, rows: int, step_tokens: int, step_seconds: float = 0.0):
        self.places, self.tokens, self.rows, self.step_tokens = places, tokens, rows, step_tokens
        self.here = 0
        self.waiting = 0
        self.waiting_tokens = 0
        self._pace = step_seconds
        self._fraction = 1.0  # of the tokens a request may have, how many it makes
        self._promised: deque[float] = deque()
        self._ends: list[float] = []
        self._looked = 0.0
        self._last: tuple[float, int] | None = None
        self._others = 0
        self._reported = 0

    @classmethod
    def of(cls, facts: Facts, queue: int, tokens: int | None) -> "Queue":
        """Limits for an engine; `tokens` None is four times what its KV cache holds."""
        limit = 4 * facts.kv_tokens if tokens is None else tokens
        return cls(facts.rows + queue, limit, facts.rows, facts.tokens, facts.step_seconds)

    def fits(self, requests: int, prompt_tokens: int) -> bool:
        """Whether so many may come in. What is larger than a limit may come when nobody waits."""
        if self.here + self._others + requests > self.places and self.here + self._others:
            return False
        return self.waiting_tokens + prompt_tokens <= self.tokens or not self.waiting

    def enter(self, prompt_tokens: int) -> None:
        self.here += 1
        self.waiting += 1
        self.waiting_tokens += prompt_tokens

    def begin(self, prompt_tokens: int) -> None:
        """A request that had entered was heard of for the first time."""
        self.waiting -= 1
        self.waiting_tokens -= prompt_tokens

    def leave(self, begun: bool, prompt_tokens: int, part: float | None) -> None:
        """A request has ended; `part` of the tokens it might have made, where it came to an end of its own."""
        if not begun:
            self.begin(prompt_tokens)
        self.here -= 1
        if part is not None:
            self._fraction += MEMORY * (part - self._fraction)

    def learn(self, stats: Stats) -> None:
        """Take the engine's word on its speed, and on how much work other fronts have given it."""
        now = stats.busy_seconds
        if self._last is not None and stats.steps > self._last[1]:
            seconds = (now - self._last[0]) / (stats.steps - self._last[1])
            self._pace += (MEMORY if self._pace else 1.0) * (seconds - self._pace)
        self._last = (now, stats.steps)
        self._reported = stats.running
        self._others = max(0, stats.running + stats.waiting - self.here)

    def forget_engine(self) -> None:
        """A new engine process counts from zero."""
        self._last, self._others = None, 0

    def busy(self, requests: int, loads: Iterable[Load]) -> Busy:
        """The refusal for whoever does not fit: when the next place not yet promised to somebody gets free."""
        now = monotonic()
        if now - self._looked > FRESH:
            self._ends, self._looked = self._forecast(now, loads), now
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        at = self._end(len(self._promised) + requests - 1, now)
        at = min(max(at, self._promised[-1] if self._promised else at), now + LONGEST)
        self._promised.extend([at] * requests)
        full = self.here + self._others + requests > self.places
        return Busy(
            f"{self.here + self._others} requests are here and {self.places} are the most"
            if full
            else f"waiting prompts have {self.waiting_tokens} tokens and {self.tokens} are the most",
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
        # Where memory is short, fewer run at once than one step could hold.
        short = self.waiting and self._reported and self._reported < self.rows
        slots = max(len(running), self._reported if short else self.rows, 1)
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
