"""One HTML file about a plan: nothing is loaded from outside, nothing runs in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import NamedTuple

from headrace.base.words import size
from headrace.bench.chart import COLOURS, Line, bar, draw
from headrace.bench.page import opening, table, tiles
from headrace.plan import words
from headrace.plan.advice import Advice
from headrace.plan.forecast import Forecast
from headrace.plan.options import Option, splits
from headrace.plan.scheme import SCHEMES
from headrace.plan.search import Choice

Measure = Callable[[Forecast], float]
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MOST = 6
"""Lines of one picture: more cannot be told apart."""


class Curve(NamedTuple):
    """An option with its points: (requests at once, what is expected of them)."""

    option: Option
    points: list[tuple[int, Forecast]]


def page(option: Option, advice: Sequence[Advice], choices: Sequence[Choice], goal: str) -> str:
    """The whole file."""
    made = option.forecast
    parts = [
        opening(escape(f"{option.anatomy.name} on {option.name}"), narrow=True),
        _head(option),
        tiles([(words.verdict(option, made), "")]),
    ]
    if made is not None:
        parts += [_numbers(made), _time(made)]
    parts += [_memory(option), _curves(curves(option), option), _advice(advice, goal)]
    parts += [_choices(choices)] if choices else []
    return "\n".join([*parts, f'<p class="sub">{_foot(option)}</p>', "</html>\n"])


def _head(option: Option) -> str:
    model, work = option.anatomy, option.work
    said = (
        f"{model.kind}, {words.count(model.parameters)} parameters{words.active(model)}; {work.tokens_in:,} tokens in,"
        f" {work.tokens_out:,} out, {work.concurrency:,} requests at once; as {option.engine.about} would run it"
    )
    notes = "".join(f'<p class="sub">{escape(note)}</p>' for note in model.notes)
    return f'<p class="sub">{escape(said)}</p>{notes}'


def _numbers(made: Forecast) -> str:
    return tiles(
        (
            (words.seconds(made.ttft), f"to the first token; p99 {words.seconds(made.ttft_p99)}"),
            (words.seconds(made.tpot), "per token after it"),
            (f"{made.output_per_s:,.0f} tok/s", f"made; {made.total_per_s:,.0f} with prompts"),
            (f"{made.requests_per_s:,.2f} /s", f"requests, each {words.seconds(made.e2e)}"),
            (f"${made.cost:,.3f}", "per million tokens made"),
        )
    )


def _time(made: Forecast) -> str:
    parts = sorted(((n, s) for n, s in made.shares.items() if s >= 0.005), key=lambda item: -item[1])
    rows = [(name, share, f"{share:.0%}") for name, share in parts[:COLOURS]]
    return f"<h2>Where the time goes: mostly {escape(made.kind)}</h2>" + bar(rows, 1.0)


def _memory(option: Option) -> str:
    made = option.memory
    rows = words.memory_rows(made)
    whole = max(float(made.total), sum(amount for _, amount, _ in rows[:-1]))
    fits = ", ".join(f"{number:,} of {length:,} tokens" for length, number in words.at_once(made))
    return (
        f"<h2>Memory of each device: {size(made.total)}</h2>"
        + bar([(name, amount, size(amount)) for name, amount, _ in rows[:-1]], whole)
        + table((), ((name, size(amount), escape(said)) for name, amount, said in rows), words=True)
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
    speeds = draw(speed, label, "tokens per second made", log_x=True, log_y=True)
    costs = draw(cost, label, "dollars per million tokens made", log_x=True, log_y=True)
    return (
        f"<h2>Throughput against latency</h2>{speeds}"
        f'<p class="sub">From left to right 1, 2, 4 ... requests at once, as long as none has to wait; the larger'
        f" dot is {option.work.concurrency}.</p>"
    ) + (f"<h2>Cost against latency</h2>{costs}" if costs else "")


def _line(curve: Curve, option: Option, time: Measure, height: Measure) -> Line:
    drawn = [(n, made) for n, made in curve.points if time(made) > 0 and height(made) > 0]
    counts = [n for n, _ in drawn]
    return Line(
        curve.option.name,
        [(time(made), height(made)) for _, made in drawn],
        said=[
            f"{n} at once: {time(made):.3g} ms, {made.output_per_s:,.0f} tok/s, ${made.cost:.3g} per million"
            for n, made in drawn
        ],
        large=counts.index(option.work.concurrency) if option.work.concurrency in counts else None,
    )


def _advice(found: Sequence[Advice], goal: str) -> str:
    if not found:
        return "<h2>What to change</h2><p>Nothing that is known here gains anything.</p>"
    rows = [
        (f"{escape(a.text)}{'*' if a.borrowed else ''}<code>{escape(a.flags)}</code>", *words.advice_cells(a))
        for a in found
    ]
    heads = ("change", *words.ADVICE_HEADS)
    note = "Each alone, against what is above. * no run of this engine stands behind it."
    return f'<h2>What to change, for {escape(goal)}</h2>{table(heads, rows)}<p class="sub">{note}</p>'


def _choices(found: Sequence[Choice]) -> str:
    return "<h2>The cheapest that holds</h2>" + table(
        words.CHOICE_HEADS, (map(escape, words.choice_cells(choice)) for choice in found)
    )


def _foot(option: Option) -> str:
    return (
        f"Predicted by arithmetic, not measured. Price: ${option.per_hour:,.2f} per hour; check it. Formulas, and how"
        " far they are from measured runs: docs/plan.md."
    )


# -- throughput against latency: a line per configuration, a point per number of requests at once ------------------


def curves(option: Option) -> list[Curve]:
    """The option itself first, then narrower weights and more devices, each where something fits."""
    found = [curve for tried in _options(option) if (curve := _curve(tried)).points]
    return found[:MOST]


def _options(option: Option) -> Iterator[Option]:
    yield option
    narrow = [
        name
        for name in ("fp8", "w4a16")
        if SCHEMES[name].bits < SCHEMES[option.scheme].bits and (name != "fp8" or option.gpu.fp8)
    ]
    for name in narrow:
        yield replace(option, scheme=name)
    if narrow and option.anatomy.windows and option.setup.kv_bits > 8:
        yield replace(option, scheme=narrow[0], kv="fp8")
    for gpus in (2 * option.gpus, 4 * option.gpus):
        if option.gpu.kind == "gpu" and gpus <= 16 and splits(option.anatomy, gpus):
            yield replace(option, gpus=gpus)


def _curve(option: Option) -> Curve:
    points: list[tuple[int, Forecast]] = []
    for count in sorted({*STEPS, option.work.concurrency}):
        made = option.asked(concurrency=count).forecast
        if made is None or made.rows < count:
            break  # from here on requests wait for each other: more of them make nothing faster
        points.append((count, made))
    return Curve(option, points)
