"""The tables of `headrace plan`."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from headrace.base.words import size
from headrace.cli._plan_read import Fit, Planned
from headrace.cli._print import sheet, table
from headrace.cli.plan import SHOWN
from headrace.plan import words
from headrace.plan.advice import Advice
from headrace.plan.forecast import Forecast
from headrace.plan.gpus import PRICES_OF
from headrace.plan.options import Option
from headrace.plan.search import Choice


def show(planned: Planned, advice: Sequence[Advice], goal: str) -> None:
    """Everything, in the order in which one asks: does it fit, how fast, what to change."""
    console = Console()
    if planned.fit is not None:
        console.print(_calibration(planned.fit))
    if planned.choices:
        console.print(_choices(planned.choices))
    option, made = planned.option, planned.option.forecast
    console.print(_settings(option, made))
    console.print(_memory(option))
    if made is not None:
        console.print(_forecast(option, made))
    if advice:
        console.print(_advice(advice, goal))


def _settings(option: Option, made: Forecast | None) -> Table:
    model, work = option.anatomy, option.work
    per_token = model.kv_per_token * option.setup.kv_bits / 8
    shared = f", the first {work.shared:,} of them shared" if work.shared else ""
    guesses = f", {work.draft.tokens} guessed per step" if work.draft else ""
    asked = f"{work.tokens_in:,} tokens in{shared}, {work.tokens_out:,} out{guesses}"
    style = "green" if made is not None else "red"
    rows = [
        ("parameters", words.count(model.parameters) + words.active(model)),
        ("KV cache", f"{per_token / 1024:,.1f} KiB per token"),
        ("workload", f"{asked}; {work.concurrency:,} requests at once"),
        ("engine", option.engine.about),
        ("verdict", f"[{style}]{words.verdict(option, made)}[/]"),
        *(("note", note) for note in model.notes),
    ]
    if option.borrowed:
        rows.append(("note", "no run of this engine on this device and scheme stands behind the times below"))
    return sheet(f"{model.name} on {option.name}", rows)


def _memory(option: Option) -> Table:
    made = option.memory
    fits = ", ".join(f"{number:,} of {length:,}" for length, number in words.at_once(made))
    rows = [(name, size(amount), said) for name, amount, said in words.memory_rows(made)]
    caption = f"requests at once: {fits} tokens" if fits else None
    rows.append(("all", size(made.total), ""))
    return table(("", "", ""), rows, words=(0, 2), title="memory of each device", caption=caption)


def _forecast(option: Option, made: Forecast) -> Table:
    waits = option.work.concurrency - made.rows
    rows = (
        ("time to first token", words.seconds(made.ttft), f"p99 {words.seconds(made.ttft_p99)}"),
        ("all at the same moment", words.seconds(made.burst), "to the last first token"),
        ("time per token", words.seconds(made.tpot), ""),
        ("a request", words.seconds(made.e2e), f"{waits:,} wait for a row" if waits else ""),
        ("throughput", f"{made.output_per_s:,.0f} tok/s", f"made; {made.total_per_s:,.0f} with the prompts"),
        ("", f"{made.requests_per_s:,.2f} /s", "requests"),
        ("cost", f"${made.cost:,.3f}", f"per million tokens made, at ${option.per_hour:,.2f} per hour"),
        ("limited by", "", words.limited(made)),
    )
    caption = f"prices of {PRICES_OF}, rough: give yours with --price" if option.price is None else None
    style = {"title": "expected", "show_header": False, "caption": caption}
    return table(("", "", ""), rows, words=(0, 2), **style)


def _advice(found: Sequence[Advice], goal: str) -> Table:
    stars = any(advice.borrowed for advice in found)
    caption = "each alone, against the above" + ("; * not measured with this engine" if stars else "")
    rows = [(a.text + ("*" if a.borrowed else ""), *words.advice_cells(a)) for a in found]
    return table(("change", *words.ADVICE_HEADS), rows, title=f"what to change, for {goal}", caption=caption)


def _choices(found: Sequence[Choice]) -> Table:
    caption = f"prices of {PRICES_OF}, rough: see --price, --gpus-file"
    rows = map(words.choice_cells, found[:SHOWN])
    return table(words.CHOICE_HEADS, rows, title="the cheapest that holds", caption=caption)


def _calibration(fit: Fit) -> Table:
    worst = max(abs(sample.error(fit.after)) for sample in fit.samples)
    rows = [
        (
            sample.name,
            words.seconds(sample.seconds),
            words.seconds(sample.predicted(fit.after)),
            f"{sample.error(fit.after):+.1%}",
            f"{sample.error(fit.before):+.1%}",
        )
        for sample in fit.samples
    ]
    heads = ("run", "measured", "predicted", "error", "before fitting")
    caption = f"at most {worst:.1%} wrong after fitting"
    return table(heads, rows, title="against measured runs", caption=caption)
