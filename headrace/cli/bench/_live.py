"""What is seen of a load test while it runs."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.crew import Progress
from headrace.bench.serve.measures import itls, ttft
from headrace.bench.serve.scrape import Point
from headrace.cli._print import table

LATELY = 300
"""Requests whose percentiles are shown."""


class Watch:
    """A table that is redrawn in place on a terminal; elsewhere nothing is shown until a level is over."""

    def __init__(self, console: Console):
        self.live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._firsts: deque[float] = deque(maxlen=LATELY)
        self._gaps: deque[float] = deque(maxlen=50 * LATELY)
        self._failed = 0
        self._load: Load | None = None
        self._before: deque[tuple[float, int]] = deque(maxlen=9)

    def __enter__(self) -> "Watch":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def told(self, load: Load, progress: Progress, points: Sequence[Point]) -> None:
        """Take a look at how far it is."""
        if load is not self._load:
            self._load, self._failed = load, 0
            for seen in (self._firsts, self._gaps, self._before):
                seen.clear()
        for sample in progress.new:
            self._failed += sample.outcome not in ("ok", "cancelled")
            if (first := ttft(sample)) is not None:
                self._firsts.append(first)
            self._gaps.extend(itls(sample))
        self._before.append((progress.elapsed, progress.streamed))
        if self.live is not None:
            self.live.update(self._table(load, progress, points))

    def _table(self, load: Load, progress: Progress, points: Sequence[Point]) -> Table:
        (then, before), (now, streamed) = self._before[0], self._before[-1]
        rate = (streamed - before) / (now - then) if now > then else 0.0
        rows = [
            ("on their way", f"{progress.running}"),
            ("done", f"{progress.done}"),
            ("failed or refused", f"[red]{self._failed}[/]" if self._failed else "0"),
            ("output tokens/s", f"{rate:,.0f}"),
            ("TTFT p50 / p99", _pair(self._firsts)),
            ("ITL p50 / p99", _pair(self._gaps)),
        ]
        if points:
            latest = points[-1].values
            rows += [
                (f"server: {name}", form.format(latest[key]))
                for key, name, form in (
                    ("running", "running", "{:.0f}"),
                    ("waiting", "waiting", "{:.0f}"),
                    ("kv_usage", "KV in use", "{:.0%}"),
                )
                if key in latest
            ]
        shown = table(
            ("", ""), rows, title=f"{load.name}, {max(progress.elapsed, 0):.0f} s", show_header=False
        )
        shown.columns[1].min_width = 12
        return shown


def _pair(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle, most = np.percentile(values, (50, 99)) * 1000
    return f"{middle:.1f} / {most:.1f} ms"
