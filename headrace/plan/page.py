"""One HTML file about a plan: nothing is loaded from outside, nothing runs in it."""

from collections.abc import Callable, Sequence
from html import escape

from headrace.plan import chart, words
from headrace.plan.advice import Advice
from headrace.plan.curves import Curve, curves
from headrace.plan.forecast import Forecast
from headrace.plan.options import Option
from headrace.plan.search import Choice

Measure = Callable[[Forecast], float]

STYLE = """
:root { --ink: #1c2530; --soft: #5b6775; --line: #dde3ea; --back: #ffffff; --panel: #f5f7fa;
  --c0: #1f6fb4; --c1: #c2571a; --c2: #2a8a57; --c3: #8b4fb0; --c4: #b3293f; --c5: #7a6a12; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf2; --soft: #9aa7b5; --line: #34404d; --back: #14191f;
  --panel: #1c232b; --c0: #6fb1ea; --c1: #f09a5c; --c2: #6bcf97; --c3: #c79be6; --c4: #f27d90; --c5: #d6c55a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
.verdict { font-size: 17px; margin: 14px 0; padding: 10px 14px; background: var(--panel); border-radius: 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 14px 0; }
.tile { background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 20px; } .tile span { color: var(--soft); font-size: 13px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); stroke-width: 1; } .tick, .label { fill: var(--soft); font-size: 12px; }
.line { fill: none; stroke-width: 2; } .dot { stroke: var(--back); stroke-width: 1.5; }
.rest { fill: var(--line); } .key { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 6px; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.dot.c0, .fill.c0 { fill: var(--c0); } .dot.c1, .fill.c1 { fill: var(--c1); } .dot.c2, .fill.c2 { fill: var(--c2); }
.dot.c3, .fill.c3 { fill: var(--c3); } .dot.c4, .fill.c4 { fill: var(--c4); } .dot.c5, .fill.c5 { fill: var(--c5); }
.key.c0 { background: var(--c0); } .key.c1 { background: var(--c1); } .key.c2 { background: var(--c2); }
.key.c3 { background: var(--c3); } .key.c4 { background: var(--c4); } .key.c5 { background: var(--c5); }
.legend { list-style: none; padding: 0; margin: 8px 0; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; white-space: normal; }
td.said { text-align: left; white-space: normal; width: 60%; color: var(--soft); }
code { font-size: 13px; color: var(--soft); }
"""


def page(option: Option, advice: Sequence[Advice], choices: Sequence[Choice], goal: str) -> str:
    """The whole file."""
    made = option.forecast
    title = f"{option.anatomy.name} on {option.name}"
    body = [f"<h1>{escape(title)}</h1>", _head(option)]
    body.append(f'<p class="verdict">{escape(words.verdict(option, made))}</p>')
    if made is not None:
        body += [_tiles(made), _time(made)]
    body += [_memory(option), _curves(curves(option), option), _advice(advice, goal)]
    body += [_choices(choices)] if choices else []
    body.append(f'<p class="soft">{_foot(option)}</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _head(option: Option) -> str:
    model, work = option.anatomy, option.work
    active = "" if model.active == model.parameters else f", {words.count(model.active)} of them for a token"
    said = (
        f"{model.kind}, {words.count(model.parameters)} parameters{active}; {work.tokens_in:,} tokens in,"
        f" {work.tokens_out:,} out, {work.concurrency:,} requests at once; as {option.engine.about} would run it"
    )
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in model.notes)
    return f'<p class="soft">{escape(said)}</p>{notes}'


def _tiles(made: Forecast) -> str:
    tiles = (
        (words.seconds(made.ttft), f"to the first token; p99 {words.seconds(made.ttft_p99)}"),
        (words.seconds(made.tpot), "per token after it"),
        (f"{made.output_per_s:,.0f} tok/s", f"made; {made.total_per_s:,.0f} with prompts"),
        (f"{made.requests_per_s:,.2f} /s", f"requests, each {words.seconds(made.e2e)}"),
        (f"${made.cost:,.3f}", "per million tokens made"),
    )
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    ) + "</div>"  # fmt: skip


def _time(made: Forecast) -> str:
    parts = sorted(((n, s) for n, s in made.shares.items() if s >= 0.005), key=lambda item: -item[1])
    parts = parts[: chart.COLOURS]
    rows = [(name, share, f"{share:.0%}") for name, share in parts]
    return (
        f"<h2>Where the time goes: mostly {escape(made.kind)}</h2>"
        + chart.bar(rows, 1.0)
        + chart.legend([(name, said) for name, _, said in rows])
    )


def _memory(option: Option) -> str:
    made = option.memory
    rows = words.memory_rows(made)[:-1]
    whole = max(float(made.total), sum(row.amount for row in rows))
    table = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{words.size(row.amount)}</td>"
        f'<td class="said">{escape(row.said)}</td></tr>'
        for row in words.memory_rows(made)
    )
    fits = ", ".join(f"{number:,} of {length:,} tokens" for length, number in words.at_once(made))
    return (
        f"<h2>Memory of each device: {words.size(made.total)}</h2>"
        + chart.bar([(row.name, row.amount, words.size(row.amount)) for row in rows], whole)
        + chart.legend([(row.name, words.size(row.amount)) for row in rows])
        + f'<div class="wide"><table>{table}</table></div>'
        + (f"<p>Requests at once: {fits}.</p>" if fits else "")
    )


def _curves(found: Sequence[Curve], option: Option) -> str:
    if not found:
        return ""
    first = [point for _, point in found[0].points]
    timed = any(point.tpot for point in first)

    def time(made: Forecast) -> float:
        return (made.tpot if timed else made.e2e) * 1000

    label = "milliseconds per token" if timed else "milliseconds per request"
    speed = [_line(curve, option, time, lambda made: made.output_per_s) for curve in found]
    cost = [_line(curve, option, time, lambda made: made.cost) for curve in found]
    names = chart.legend([(curve.name, "") for curve in found])
    return (
        f"<h2>Throughput against latency</h2>{names}{chart.lines(speed, label, 'tokens per second made')}"
        f'<p class="soft">From left to right 1, 2, 4 ... requests at once, as long as none has to wait; the larger'
        f" dot is {option.work.concurrency}.</p>"
        f"<h2>Cost against latency</h2>{names}{chart.lines(cost, label, 'dollars per million tokens made')}"
    )


def _line(curve: Curve, option: Option, time: Measure, height: Measure) -> chart.Line:
    points = [
        chart.Point(
            time(made),
            height(made),
            f"{n} at once: {time(made):.3g} ms, {made.output_per_s:,.0f} tok/s, ${made.cost:.3g} per million",
            n == option.work.concurrency,
        )
        for n, made in curve.points
        if time(made) > 0 and height(made) > 0
    ]
    return chart.Line(curve.name, points)


def _advice(found: Sequence[Advice], goal: str) -> str:
    if not found:
        return "<h2>What to change</h2><p>Nothing that is known here gains anything.</p>"
    rows = "".join(
        f"<tr><td>{escape(a.text)}{'*' if a.borrowed else ''}<br/><code>{escape(a.flags)}</code></td>"
        f"<td>{_ratio(a.throughput, a.forecast.output_per_s, ' tok/s')}</td>"
        f"<td>{_ratio(a.tpot, a.forecast.tpot * 1000, ' ms')}</td>"
        f"<td>{_ratio(a.ttft, a.forecast.ttft * 1000, ' ms')}</td>"
        f"<td>{_ratio(a.cost, a.forecast.cost, ' $')}</td></tr>"
        for a in found
    )
    return (
        f"<h2>What to change, for {escape(goal)}</h2>"
        '<div class="wide"><table><tr><th>change</th><th>throughput</th><th>per token</th><th>first token</th>'
        f"<th>cost</th></tr>{rows}</table></div>"
        '<p class="soft">Each alone, against what is above. * no run of this engine stands behind it.</p>'
    )


def _ratio(ratio: float | None, value: float, unit: str) -> str:
    return f"{ratio:.2f} x" if ratio is not None else f"{value:,.3g}{unit}"


def _choices(found: Sequence[Choice]) -> str:
    rows = "".join(
        f"<tr><td>{c.replicas} x ({escape(c.option.name)})</td><td>${c.per_hour:,.2f}</td><td>${c.cost:,.3f}</td>"
        f"<td>{c.qps:,.2f}</td><td>{c.option.work.concurrency}</td><td>{words.seconds(c.forecast.ttft)}</td>"
        f"<td>{words.seconds(c.forecast.tpot)}</td></tr>"
        for c in found
    )
    return (
        '<h2>The cheapest that holds</h2><div class="wide"><table><tr><th>configuration</th><th>an hour</th>'
        "<th>a million tokens</th><th>requests/s</th><th>at once, each</th><th>first token</th><th>per token</th></tr>"
        f"{rows}</table></div>"
    )


def _foot(option: Option) -> str:
    return (
        f"Predicted by arithmetic, not measured. Price: ${option.per_hour:,.2f} per hour; check it. Formulas, and how"
        " far they are from measured runs: docs/plan.md."
    )
