"""What is printed of a load test."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from headrace.bench.serve.campaign import Level
from headrace.bench.serve.compare import Row, said
from headrace.bench.serve.measures import NAMES, PERCENTILES, Spread, Summary
from headrace.bench.serve.scrape import shown as server_rows
from headrace.cli._print import table

NAMED = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}


def shown(level: Level, found: dict[str, Any] | None = None) -> Group:
    """A level: counts and rates, percentiles, the server's side, and what to mind."""
    parts: list[Table | Text] = [_rates(level)]
    if level.whole.outcomes.get("ok"):
        parts.append(_latencies(level.whole))
    parts += [Text(f"note: {warning}", style="yellow") for warning in level.warnings]
    if found is not None:
        fails = "nothing fails yet" if found["fails"] is None else f"{found['fails']:.4g}/s does not"
        holds = f"{found['holds']:.4g}/s holds" if found["holds"] else "nothing holds yet"
        parts.append(Text(f"{found['limits']}: {holds}, {fails}", style="bold"))
    return Group(*parts)


def _rates(level: Level) -> Table:
    whole, server = level.whole, level.server
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(whole.outcomes.items()))
    rows = [
        ("requests", outcomes or "none"),
        ("seconds", f"{whole.duration:.1f}"),
        ("requests/s", f"{whole.requests_per_second:.2f}"),
        ("output tokens/s", f"{whole.output_per_second:,.1f}"),
        ("all tokens/s", f"{whole.total_per_second:,.1f}"),
        ("tokens in / out", f"{whole.input_tokens:,} / {whole.output_tokens:,}"),
        ("of the prompts cached", f"{whole.cached_tokens:,}"),
    ]
    if whole.goodput is not None and whole.attained is not None:
        rows.append(("goodput, requests/s", f"{whole.goodput:.2f} ({whole.attained:.1%})"))
    if level.steady is not None and level.window is not None:
        begin, end = level.window
        name = f"output tokens/s, steady ({begin:.0f} to {end:.0f} s)"
        rows.append((name, f"{level.steady.output_per_second:,.1f}"))
    if whole.lag is not None and level.load.streams is None:
        rows.append(("client late, p99", f"{whole.lag.percentiles[99][0] * 1000:.2f} ms"))
    if server is not None:
        rows += [(f"server: {name}", value) for name, value in server_rows(server)]
    return table(("", ""), rows, title=level.load.name, show_header=False)


def _latencies(summary: Summary) -> Table:
    heads = ("", "mean", *(f"p{part}" for part in PERCENTILES), "max")
    rows = [
        (NAMED[name], _ms(spread.mean), *(_interval(spread, part) for part in PERCENTILES), _ms(spread.most))
        for name in NAMES
        if (spread := summary.spreads[name]) is not None
    ]
    return table(heads, rows, caption="milliseconds; below them 95% confidence intervals")


def _interval(spread: Spread, part: int) -> str:
    value, low, high = spread.percentiles[part]
    if low is None or high is None:
        return _ms(value)
    bounds = "-".join(f"{b * 1000:.3g}" if b < 1 else f"{b * 1000:,.0f}" for b in (low, high))
    return f"{_ms(value)}\n[dim]{bounds}[/]"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}" if seconds >= 0.01 else f"{seconds * 1000:.2f}"


def comparison(rows: Sequence[Row]) -> Group:
    """What changed since the earlier run, and after it what is past a gate."""

    def cells(row: Row) -> tuple[str, ...]:
        colour = "" if row.better is None else "green" if row.better else "yellow"
        change = "" if row.change is None else f"{row.change:+.1%}"
        change = f"[{colour}]{change}[/]" if colour and change else change
        return row.level, row.name, said(row.name, row.before), said(row.name, row.after), change

    heads = ("load", "number", "before", "now", "change")
    changes = table(heads, map(cells, rows), words=(0, 1), title="against the earlier run")
    failed = [
        Text(
            f"fails: {row.level}, {row.name} went from {said(row.name, row.before)} to"
            f" {said(row.name, row.after) or 'nothing'}, past {gate}",
            style="bold red",
        )
        for row in rows
        for gate in row.broken
    ]
    return Group(changes, *failed)
