"""The tables of `headrace plan`."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from headrace.cli._plan_read import Fit, Planned
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
    table = Table(title=f"{model.name} on {option.name}", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    active = "" if model.active == model.parameters else f", {words.count(model.active)} of them for a token"
    table.add_row("parameters", f"{words.count(model.parameters)}{active}")
    per_token = model.kv_per_token * option.setup.kv_bits / 8
    table.add_row("KV cache", f"{per_token / 1024:,.1f} KiB per token")
    shared = f", the first {work.shared:,} of them shared" if work.shared else ""
    guesses = f", {work.draft.tokens} guessed per step" if work.draft else ""
    table.add_row(
        "workload",
        f"{work.tokens_in:,} tokens in{shared}, {work.tokens_out:,} out{guesses};"
        f" {work.concurrency:,} requests at once",
    )
    table.add_row("engine", option.engine.about)
    style = "green" if made is not None else "red"
    table.add_row("verdict", f"[{style}]{words.verdict(option, made)}[/]")
    for note in model.notes:
        table.add_row("note", note)
    if option.borrowed:
        table.add_row("note", "no run of this engine on this device and scheme stands behind the times below")
    return table


def _memory(option: Option) -> Table:
    made = option.memory
    fits = ", ".join(f"{number:,} of {length:,}" for length, number in words.at_once(made))
    table = Table(title="memory of each device", caption=f"requests at once: {fits} tokens" if fits else None)
    table.add_column()
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")
    for row in words.memory_rows(made):
        table.add_row(row.name, words.size(row.amount), row.said)
    table.add_row("all", words.size(made.total), "")
    return table


def _forecast(option: Option, made: Forecast) -> Table:
    table = Table(title="expected", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
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
    for row in rows:
        table.add_row(*row)
    table.caption = f"prices of {PRICES_OF}, rough: give yours with --price" if option.price is None else None
    return table


def _advice(found: Sequence[Advice], goal: str) -> Table:
    stars = any(advice.borrowed for advice in found)
    table = Table(
        title=f"what to change, for {goal}",
        caption="each alone, against the above" + ("; * not measured with this engine" if stars else ""),
    )
    table.add_column("change")
    for heading in words.ADVICE_HEADS:
        table.add_column(heading, justify="right")
    for a in found:
        table.add_row(a.text + ("*" if a.borrowed else ""), *words.advice_cells(a))
    return table


def _choices(found: Sequence[Choice]) -> Table:
    table = Table(
        title="the cheapest that holds", caption=f"prices of {PRICES_OF}, rough: see --price, --gpus-file"
    )
    for heading in words.CHOICE_HEADS:
        table.add_column(heading, justify="left" if heading == words.CHOICE_HEADS[0] else "right")
    for choice in found[:SHOWN]:
        table.add_row(*words.choice_cells(choice))
    return table


def _calibration(fit: Fit) -> Table:
    worst = max(abs(sample.error(fit.after)) for sample in fit.samples)
    table = Table(title="against measured runs", caption=f"at most {worst:.1%} wrong after fitting")
    table.add_column("run")
    for heading in ("measured", "predicted", "error", "before fitting"):
        table.add_column(heading, justify="right")
    for sample in fit.samples:
        table.add_row(
            sample.name,
            words.seconds(sample.seconds),
            words.seconds(sample.predicted(fit.after)),
            f"{sample.error(fit.after):+.1%}",
            f"{sample.error(fit.before):+.1%}",
        )
    return table
