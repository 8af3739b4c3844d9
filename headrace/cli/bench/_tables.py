"""What is printed of a load test."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from headrace.bench.serve.campaign import Level
from headrace.bench.serve.compare import Row
from headrace.bench.serve.measures import NAMES, PERCENTILES, Spread, Summary

NAMED = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}


def shown(level: Level, found: dict[str, Any] | None = None) -> Group:
    """A level: counts and rates, percentiles, the server's side, and what to mind."""
    parts: list[Table | Text] = [_rates(level), _latencies(level.whole)]
    parts += [Text(f"note: {warning}", style="yellow") for warning in level.warnings]
    if found is not None:
        fails = "nothing fails yet" if found["fails"] is None else f"{found['fails']:.4g}/s does not"
        parts.append(Text(f"{found['limits']}: {found['holds']:.4g}/s holds, {fails}", style="bold"))
    return Group(*parts)


def _rates(level: Level) -> Table:
    whole, server = level.whole, level.server
    table = Table(title=level.load.name, show_header=False)
    table.add_column()
    table.add_column(justify="right")
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
        rows.append(
            (
                f"output tokens/s, steady ({begin:.0f} to {end:.0f} s)",
                f"{level.steady.output_per_second:,.1f}",
            )
        )
    if whole.lag is not None and level.load.streams is None:
        rows.append(("client late, p99", f"{whole.lag.percentiles[99][0] * 1000:.2f} ms"))
    if server is not None:
        rows += [
            (f"server: {name}", form.format(value))
            for name, value, form in (
                ("running, mean", server.running_mean, "{:.1f}"),
                ("waiting, most", server.waiting_most, "{:.0f}"),
                ("KV in use, most", server.kv_usage_most, "{:.1%}"),
                ("prefix hits", server.prefix_hit_rate, "{:.1%}"),
                ("preemptions", server.preemptions, "{:.0f}"),
            )
            if value is not None
        ]
        rows += [
            (f"server: {name}", f"{value * 1000:.1f} ms")
            for name, value in (("queue, mean", server.queue), ("TTFT, mean", server.ttft))
            if value is not None
        ]
    for row in rows:
        table.add_row(*row)
    return table


def _latencies(summary: Summary) -> Table:
    table = Table(caption="milliseconds; in brackets 95% confidence intervals")
    table.add_column("")
    for heading in ("mean", *(f"p{part}" for part in PERCENTILES), "max"):
        table.add_column(heading, justify="right")
    for name in NAMES:
        if (spread := summary.spreads[name]) is not None:
            cells = [_interval(spread, part) for part in PERCENTILES]
            table.add_row(NAMED[name], _ms(spread.mean), *cells, _ms(spread.most))
    return table


def _interval(spread: Spread, part: int) -> str:
    value, low, high = spread.percentiles[part]
    if low is None or high is None:
        return _ms(value)
    return f"{_ms(value)} [dim]({_ms(low)}, {_ms(high)})[/]"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}" if seconds >= 0.01 else f"{seconds * 1000:.2f}"


def comparison(rows: Sequence[Row]) -> Group:
    """What changed since the earlier run, and after it what is past a gate."""
    table = Table(title="against the earlier run")
    for heading in ("load", "number", "before", "now", "change"):
        table.add_column(heading, justify="left" if heading in ("load", "number") else "right")
    for row in rows:
        colour = "" if row.better is None else "green" if row.better else "yellow"
        change = "" if row.change is None else f"{row.change:+.1%}"
        table.add_row(
            row.level,
            row.name,
            *("" if number is None else f"{number:.5g}" for number in (row.before, row.after)),
            f"[{colour}]{change}[/]" if colour and change else change,
        )
    failed = [
        Text(
            f"fails: {row.level}, {row.name} went from {row.before} to {row.after}, past {gate}",
            style="bold red",
        )
        for row in rows
        for gate in row.broken
    ]
    return Group(table, *failed)
