"""Levels of load, one after the other, against one server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import NamedTuple

from headrace.bench.serve import crew, steady
from headrace.bench.serve.arrivals import Load, times
from headrace.bench.serve.client import LOST
from headrace.bench.serve.connection import Target
from headrace.bench.serve.crew import Progress
from headrace.bench.serve.data import Prompts, Source, replayed
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.measures import Definitions, Summary, summarize
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.scrape import Point, Scraper, Server, join
from headrace.bench.serve.worker import Job

LATE = 0.010
"""Seconds: where the client's 99th percentile of lateness is above, the run says nothing about the server."""

TIRED = 0.85
"""Part of a core: a client process that uses more may be what limits."""

HEAD_START = 0.8
"""Seconds that client processes get to start in, and a little more for each that shares a core."""

Told = Callable[[Load, Progress, Sequence[Point]], None]


def _silent(load: Load, progress: Progress, points: Sequence[Point]) -> None:
    """Nobody is told."""


class Level(NamedTuple):
    """One level of load and what came of it.

    start       Unix time is not kept: moments of samples and points count from it (monotonic seconds)
    window      when it was steady, and `steady` what it came to then
    server      the server's own numbers
    warnings    why the numbers may not be what they seem
    """

    load: Load
    samples: list[Sample]
    start: float
    whole: Summary
    window: tuple[float, float] | None
    steady: Summary | None
    points: list[Point]
    server: Server | None
    cpu: list[float]
    warnings: list[str]

    @property
    def invalid(self) -> bool:
        """Whether the client was so late that the numbers say nothing about the server."""
        return any(warning.startswith("invalid") for warning in self.warnings)

    @property
    def dead(self) -> bool:
        """Whether the server was gone at the end: the last requests to be over had no connection, or lost it."""
        last = sorted(self.samples, key=lambda sample: sample.ended)[-3:]
        return bool(last) and all(sample.reason.startswith(LOST) for sample in last)


@dataclass(frozen=True, slots=True)
class Campaign:
    """All that the levels have in common.

    drain       seconds after the last request is due for which answers are waited for
    limits      of a good request
    warmup      requests before the first level that nobody counts
    """

    target: Target
    ask: Ask
    source: Source
    seed: int = 0
    processes: int = 1
    timeout: float = 600.0
    drain: float = 60.0
    cancel: float = 0.0
    limits: dict[str, float] | None = None
    definitions: Definitions = "headrace"
    told: Told = _silent

    def warm_up(self, requests: int) -> None:
        """A few requests, so that what a server does once is not measured."""
        if requests:
            load = Load(streams=min(requests, 4), requests=requests, duration=self.timeout)
            replace(self, told=_silent, cancel=0.0)._play(load, self.seed + 999_983, [])

    def level(self, load: Load, number: int = 0) -> Level:
        """Play one level. Prompts differ from those of other numbers, so that no cache has them."""
        scraper = Scraper(self.target)
        scraper.start()
        try:
            start, samples, progress = self._play(load, self.seed + 7919 * number, scraper.points)
        finally:
            points = scraper.stop()
        return self._judged(load, samples, start, points, progress.cpu)

    def _play(self, load: Load, seed: int, points: list[Point]) -> tuple[float, list[Sample], Progress]:
        last = self._last(load, seed)
        processes = min(self.processes, load.streams or self.processes)
        start = monotonic() + HEAD_START + 0.1 * processes
        jobs = [
            Job(
                target=self.target, ask=self.ask, load=load, source=self.source, seed=seed, index=index,
                of=processes, start=start, last=last, until=last + self.drain, timeout=self.timeout,
                cancel=self.cancel,
            )
            for index in range(processes)
        ]  # fmt: skip
        samples, progress = crew.run(jobs, lambda progress: self.told(load, progress, points))
        return start, samples, progress

    def _last(self, load: Load, seed: int) -> float:
        """When the last request is due."""
        if load.streams is not None:
            return load.duration if load.duration is not None else 24 * 3600.0
        if load.replay and isinstance(self.source, Prompts):
            due = [at for at, _ in replayed(self.source, load, seed)]
        else:
            due = times(load, seed)
        return due[-1] if due else 0.0

    def _judged(
        self, load: Load, samples: list[Sample], start: float, points: list[Point], cpu: list[float]
    ) -> Level:
        duration = max((sample.ended for sample in samples), default=0.0)
        whole = summarize(samples, duration, self.limits, self.definitions)
        window = steady.window(samples, duration)
        calm = None
        if window is not None:
            held = steady.inside(samples, *window)
            length, generated = window[1] - window[0], steady.tokens_in(samples, *window)
            calm = summarize(held, length, self.limits, self.definitions)
            calm = calm._replace(output_tokens=generated, output_per_second=generated / length)
        found = Level(load, samples, start, whole, window, calm, points, join(points), cpu, [])
        found.warnings.extend(_warnings(found))
        return found


def _warnings(level: Level) -> list[str]:
    """Why a reader should not take the numbers as they are."""
    found: list[str] = []
    whole = level.whole
    if whole.lag is not None and level.load.streams is None:
        late, first = whole.lag.percentiles[99][0], whole.spreads["ttft"]
        if late > LATE:
            found.append(
                f"invalid: the client was late by {late * 1000:.1f} ms (p99); use more --processes or another machine"
            )
        elif first is not None and late > 0.05 * first.percentiles[50][0]:
            found.append(
                f"the client's lateness, {late * 1000:.1f} ms (p99), is more than 5% of the median TTFT"
            )
    used = [seconds / max(whole.duration, 1.0) for seconds in level.cpu]
    if used and max(used) > TIRED:
        found.append(
            f"a client process used {max(used):.0%} of a core: it may be what limits; use more --processes"
        )
    if whole.inexact:
        found.append(
            f"the server did not count the tokens of {whole.inexact} answers: chunks were counted instead"
        )
    if whole.reasons:
        bad = sum(whole.reasons.values())
        most = "; ".join(f"{count} x {reason}" for reason, count in list(whole.reasons.items())[:3])
        found.append(f"{bad} of {whole.sent} requests failed or were refused: {most}")
    if level.dead:
        found.append("the server was gone at the end; nothing is measured after this")
    if level.window is None and whole.duration:
        found.append("no steady part was found: the run is too short or its load changes all the time")
    return found
