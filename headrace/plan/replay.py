"""The steps that a list of requests takes, all there from the start: what calibration compares with a measured run.

How the steps are cut does not depend on how long they take, so a run is cut once and priced as often as wanted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.plan.anatomy import Anatomy
from headrace.plan.cost import Setup, Work, parts

Counts = NDArray[np.float64]


class Limits(NamedTuple):
    """Of a step and of the cache: `kv_tokens` is what the running requests may hold together; `beside`: rows that
    decode are no part of `tokens`."""

    rows: int
    tokens: int
    kv_tokens: int
    beside: bool = False


class Run(NamedTuple):
    """The steps of a run; `times` says how many steps are alike."""

    work: Work
    times: Counts

    def seconds(self, setup: Setup) -> float:
        """How long the run takes."""
        return float(np.sum(parts(setup, self.work).total * self.times))


def visible(first: float, last: float, window: int | None) -> float:
    """Keys that the queries at positions first to last - 1 see, added up; each sees itself."""
    if window is None:
        return (last * (last + 1) - first * (first + 1)) / 2
    turn = min(max(first, window - 1), last)
    return (turn * (turn + 1) - first * (first + 1)) / 2 + (last - turn) * window


class _Cut:
    """Cuts requests into steps: rows that generate first, then pieces of prompts up to the limit of tokens."""

    def __init__(self, model: Anatomy, requests: list[tuple[int, int]], limits: Limits, shared: int):
        self.windows = [kind.window for kind, _ in model.kinds]
        self.limits, self.shared = limits, shared
        self.waiting = list(reversed(requests))
        self.context: Counts = np.zeros(0)
        self.left: Counts = np.zeros(0)
        self.begun: tuple[int, int, int] | None = None  # computed, prompt, answer
        self.held = 0.0
        self.steps: list[tuple[float, ...]] = []
        self.seen_shared = False

    def run(self) -> Run:
        while self.waiting or self.begun or self.left.size:
            chunks = self._admit()
            rows = int(self.left.size)
            times = float(self.left.min()) if rows and not chunks else 1.0
            keys = [float(self._seen(window, (times - 1) / 2)) for window in self.windows]
            near = [float(min(self.shared, w or self.shared) * rows) for w in self.windows]
            pairs = [sum(visible(a, b, w) for a, b, *_ in chunks) for w in self.windows]
            done = [(prompt, answer) for _, b, prompt, answer in chunks if b == prompt]
            tokens = rows + sum(b - a for a, b, *_ in chunks)
            self.steps.append((times, rows + len(done), tokens, *keys, *near, *pairs))
            self._advance(times, done)
        table = np.asarray(self.steps, np.float64).T
        kinds = len(self.windows)
        keys, near, pairs = (tuple(table[3 + kinds * n : 3 + kinds * (n + 1)]) for n in range(3))
        work = Work(table[1], table[2], keys, near, pairs)
        return Run(work, table[0])

    def _seen(self, window: int | None, ahead: float) -> float:
        context = self.context + ahead + 1
        return float(np.sum(context if window is None else np.minimum(context, window)))

    def _admit(self) -> list[tuple[int, int, int, int]]:
        """Pieces of prompts for this step: (from, to, prompt, answer)."""
        rows = int(self.left.size)
        budget = self.limits.tokens - (0 if self.limits.beside else rows)
        chunks: list[tuple[int, int, int, int]] = []
        while budget > 0 and (self.begun or self.waiting):
            if self.begun is None and not self._open(rows):
                break
            assert self.begun is not None
            start, prompt, answer = self.begun
            stop = min(prompt, start + budget)
            chunks.append((start, stop, prompt, answer))
            budget -= stop - start
            rows += 1
            self.begun = (stop, prompt, answer) if stop < prompt else None
        return chunks

    def _open(self, rows: int) -> bool:
        """Take the next request, if there is a row and memory for it. One alone always gets in."""
        prompt, answer = self.waiting[-1]
        found = self.shared if self.seen_shared else 0
        need = prompt + answer / 2 - found
        if rows and (rows >= self.limits.rows or self.held + need > self.limits.kv_tokens):
            return False
        self.waiting.pop()
        self.held += need
        self.seen_shared = self.seen_shared or self.shared > 0
        self.begun = (min(found, prompt - 1), prompt, answer)
        return True

    def _advance(self, times: float, done: list[tuple[int, int]]) -> None:
        """Rows move on; those that are done leave; prompts that are through become rows, with their first token."""
        self.context, self.left = self.context + times, self.left - times
        stays = self.left > 0
        if not stays.all():
            self.held = max(0.0, self.held - float(np.sum(self.context[~stays] - self.shared)))
            self.context, self.left = self.context[stays], self.left[stays]
        fresh = [(prompt, answer - 1) for prompt, answer in done if answer > 1]
        self.held -= sum(prompt + answer / 2 for prompt, answer in done if answer <= 1)
        if fresh:
            self.context = np.concatenate([self.context, [float(p) for p, _ in fresh]])
            self.left = np.concatenate([self.left, [float(a) for _, a in fresh]])


def cut(model: Anatomy, requests: list[tuple[int, int]], limits: Limits, shared: int = 0) -> Run:
    """The steps of requests (tokens in, tokens out); all prompts begin with the same `shared` tokens."""
    return _Cut(model, requests, limits, shared).run()
