"""The report of a run as one HTML file that loads nothing: tables, curves, and what each number means."""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any

import numpy as np

from headrace.bench.chart import Line, draw
from headrace.bench.page import definitions, opening, settings, table
from headrace.bench.serve.campaign import Level
from headrace.bench.serve.compare import Row, said
from headrace.bench.serve.measures import OF_ONE, Spread, itls
from headrace.bench.serve.scrape import shown
from headrace.bench.serve.steady import moments_of, running

DEFINITIONS = (
    (
        "TTFT",
        "from when the request was due to the first chunk with tokens; how late the client was is included",
    ),
    ("TPOT", "from the first token to the last, over the tokens after the first; one number per request"),
    ("ITL", "between tokens, all of them; tokens that came in one chunk share the time since the one before"),
    ("E2E", "from when the request was due to its last token"),
    ("goodput", "requests per second that ended well and within all limits"),
    ("steady", "without the time in which the server filled up and ran dry: see the note under each level"),
    ("small numbers", "95% confidence interval: order statistics for requests, batch means for tokens"),
)
MS = 1000.0


def html(found: dict[str, Any], levels: Sequence[Level], rows: Sequence[Row] = ()) -> str:
    """The whole page. `found` is the result as JSON has it, `rows` a comparison with an earlier one."""
    title = f"{escape(str(found['model_id']))} under load"
    parts = [
        opening(title),
        f'<p class="sub">{escape(str(found["url"]))}, {escape(str(found["date"]))}, times in milliseconds,'
        f" definitions: {escape(str(found['definitions']))}</p>",
        _search(found.get("search")),
        _levels(levels),
        _curves(levels),
        _comparison(rows),
        *(_level(level, open_=n == len(levels) - 1) for n, level in enumerate(levels)),
        definitions(DEFINITIONS),
        _others(found["definitions"]),
        _settings(found),
        "</html>",
    ]
    return "\n".join(part for part in parts if part)


def _search(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    holds, fails = found["holds"], found["fails"]
    held = f"holds at <b>{holds:.4g} requests per second</b>" if holds else "no rate that holds was found"
    edge = "no rate that fails was found" if fails is None else f"fails at {fails:.4g}/s"
    return f"<h2>{escape(str(found['limits']))}</h2><p>{held}, {edge}</p>"


# -- all levels -------------------------------------------------------------------------------------------------


def _levels(levels: Sequence[Level]) -> str:
    heads = (
        *("load", "sent", "failed", "refused", "requests/s", "output tok/s", "goodput/s"),
        *("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "ITL p99", "E2E p99", "server queue", "KV in use"),
    )
    return "<h2>Levels</h2>" + table(heads, map(_level_row, levels))


def _level_row(level: Level) -> list[str]:
    whole, server = level.whole, level.server
    bad, spreads = whole.failed, whole.spreads
    wanted = (("ttft", 50), ("ttft", 99), ("tpot", 50), ("tpot", 99), ("itl", 99), ("e2e", 99))
    invalid = level.invalid
    return [
        f'<span class="{"bad" if invalid else ""}">{escape(level.load.name)}{" (invalid)" if invalid else ""}</span>',
        str(whole.sent),
        f'<span class="bad">{bad}</span>' if bad else "0",
        str(whole.outcomes.get("refused", 0)),
        f"{whole.requests_per_second:.2f}",
        f"{whole.output_per_second:,.0f}",
        "" if whole.goodput is None else f"{whole.goodput:.2f} <small>{whole.attained or 0:.1%}</small>",
        *(_cell(spreads[name], part) for name, part in wanted),
        "" if server is None or server.queue is None else f"{server.queue * MS:.1f}",
        "" if server is None or server.kv_usage_most is None else f"{server.kv_usage_most:.0%}",
    ]


def _cell(spread: Spread | None, part: int) -> str:
    if spread is None:
        return ""
    value, low, high = spread.percentiles[part]
    if low is None and high is None:
        return f"{value * MS:.1f}"
    bounds = f"{'?' if low is None else f'{low * MS:.1f}'} to {'?' if high is None else f'{high * MS:.1f}'}"
    return f"{value * MS:.1f}<small>{bounds}</small>"


def _curves(levels: Sequence[Level]) -> str:
    """Latency against load: what a level's name does not tell. Levels that say nothing of the server are left out."""
    levels = [level for level in levels if level.samples and not level.invalid]
    if len(levels) < 2:
        return ""
    ordered = sorted(levels, key=lambda level: level.whole.output_per_second)
    charts: list[str] = []
    for name, title in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "E2E")):
        lines = [
            Line(
                f"{title} p{part}, {said}",
                [
                    (level.whole.output_per_second, spread.percentiles[part][0] * MS)
                    for level in ordered
                    if (level.load.streams is not None) == closed
                    and (spread := level.whole.spreads[name]) is not None
                ],
            )
            for closed, said in ((False, "by rate"), (True, "by streams"))
            for part in (50, 99)
        ]
        charts.append(draw(lines, "output tokens per second", f"{title}, ms", log_y=True))
    offered = [
        (level.load.rate, level.whole.requests_per_second)
        for level in sorted(levels, key=lambda level: level.load.rate)
        if level.load.streams is None and level.load.rate < 1e9
    ]
    if len(offered) > 1:
        lines = [Line("answered", offered), Line("asked for", [(rate, rate) for rate, _ in offered])]
        charts.append(draw(lines, "requests per second asked for", "answered per second"))
    return f'<h2>Latency against load</h2><div class="charts">{"".join(charts)}</div>'


def _comparison(rows: Sequence[Row]) -> str:
    if not rows:
        return ""

    def cells(row: Row) -> list[str]:
        style = "" if row.better is None else "good" if row.better else "warn"
        change = "" if row.change is None else f'<span class="{style}">{row.change:+.1%}</span>'
        gates = ", ".join(map(escape, row.broken))
        return [
            escape(row.level),
            row.name,
            *(said(row.name, number) for number in (row.before, row.after)),
            change,
            f'<span class="bad">past {gates}</span>' if gates else "",
        ]

    heads = ("load", "number", "before", "now", "change", "")
    return "<h2>Against the baseline</h2>" + table(heads, map(cells, rows))


# -- one level --------------------------------------------------------------------------------------------------


def _level(level: Level, open_: bool) -> str:
    parts = [f"<details{' open' if open_ else ''}><summary>{escape(level.load.name)}</summary>"]
    parts += [f'<p class="warn">{escape(warning)}</p>' for warning in level.warnings]
    if level.window is not None and level.steady is not None:
        begin, end = level.window
        calm = level.steady
        first = calm.spreads["ttft"]
        parts.append(
            f'<p class="sub">Steady from {begin:.1f} s to {end:.1f} s: {calm.output_per_second:,.0f} output tokens/s,'
            f" {calm.sent} requests"
            + (f", TTFT p50 {first.percentiles[50][0] * MS:.1f} ms</p>" if first else "</p>")
        )
    parts.append(f'<div class="charts">{_percentiles(level)}{_timelines(level)}</div>')
    if level.whole.reasons:
        rows = [[str(count), escape(reason)] for reason, count in level.whole.reasons.items()]
        parts.append(table(("requests", "what went wrong"), rows, words=True))
    if level.server is not None:
        parts.append("<h3>By the server's own numbers</h3>" + table((), shown(level.server)))
    return "".join(parts) + "</details>"


def _percentiles(level: Level) -> str:
    """Each measure over the share of requests below it, the tail stretched: 50, 90, 99, 99.9 are equally far apart."""
    ok = [sample for sample in level.samples if sample.outcome == "ok"]
    measured = {
        name: [v for one in ok if (v := of(one, "headrace")) is not None] for name, of in OF_ONE.items()
    }
    measured["itl"] = [gap for one in ok for gap in itls(one)]
    charts: list[str] = []
    for names in (("ttft", "e2e"), ("itl", "tpot")):
        lines = [Line(name.upper(), _tail(measured[name])) for name in names]
        labels = [(_stretch(part), f"p{part:g}") for part in (0, 50, 90, 99, 99.9)]
        charts.append(draw(lines, "percentile", "ms", log_y=True, x_labels=labels))
    return "".join(charts)


def _stretch(part: float) -> float:
    return -log10(1 - part / 100)


def _tail(values: Sequence[float]) -> list[tuple[float, float]]:
    if not values:
        return []
    most = 100 * (1 - 1 / (len(values) + 1))
    parts = np.concatenate([np.arange(0, 90, 5), np.arange(90, 99, 0.5), np.arange(99, 99.95, 0.05)])
    parts = parts[parts <= most]
    return [(_stretch(float(p)), v * MS) for p, v in zip(parts, np.percentile(values, parts), strict=True)]


def _timelines(level: Level) -> str:
    samples, duration = level.samples, level.whole.duration
    if not samples or duration <= 0:
        return ""
    moments = np.linspace(0, duration, 200)
    lines = [Line("on their way", list(zip(moments, running(samples, moments), strict=True)))]
    lines += [Line(f"{key} (server)", _gauge(level, key)) for key in ("running", "waiting")]
    charts = [draw(lines, "seconds", "requests")]
    came = np.concatenate([moments_of(one) for one in samples])
    width = max(duration / 100, 0.1)
    counts, edges = np.histogram(came, bins=np.arange(0, duration + width, width))
    rate = [
        (float(edge + width / 2), float(count / width)) for edge, count in zip(edges, counts, strict=False)
    ]
    charts.append(draw([Line("chunks with tokens", rate)], "seconds", "per second"))
    firsts = [(one.scheduled, (one.first - one.scheduled) * MS) for one in samples if one.first is not None]
    charts.append(draw([Line("TTFT", firsts, dots=True)], "due after seconds", "ms", log_y=True))
    used = [(at, part * 100) for at, part in _gauge(level, "kv_usage")]
    charts.append(draw([Line("KV in use", used)], "seconds", "percent"))
    return "".join(charts)


def _gauge(level: Level, key: str) -> list[tuple[float, float]]:
    """What the server said of itself since the level began."""
    found = [(point.at - level.start, point.values[key]) for point in level.points if key in point.values]
    return [point for point in found if point[0] >= 0]


def _others(whose: str) -> str:
    """Said where the numbers of tables and curves do not mean what the list above says."""
    if whose in ("headrace", "mlperf"):
        return ""
    return (
        f"<p class='warn'>TTFT, TPOT, ITL and E2E of all levels are here as {whose} defines them;"
        " those in the charts of a single level are as above.</p>"
    )


def _settings(found: dict[str, Any]) -> str:
    said = dict(found["settings"])
    client = {f"client: {name.replace('_', ' ')}": f"{v:.4g}" for name, v in said.pop("client", {}).items()}
    return settings({**said, **client, **found["versions"], "commit": found["commit"]})
