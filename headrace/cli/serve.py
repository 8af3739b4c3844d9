"""Offers a model over HTTP."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime, monotonic
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from headrace.base.errors import Refused
from headrace.cli._knobs import Engine, EngineFlags
from headrace.serve.settings import Serve, ServeConfig
from headrace.serve.supervisor import Supervisor

if TYPE_CHECKING:
    from headrace.serve.wire import Facts

MEMORY = {
    "weights": "weights",
    "workspace": "workspace of a step",
    "kv_cache": "KV cache",
    "allowed": "may be used (memory.share)",
    "free": "free before",
}
"""What the rows of the memory table are called."""

ServeFlags = Annotated[Serve, Parameter(name="*", group=Group("Server", sort_key=1))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The flags of the server."""

    serve: ServeFlags = field(default_factory=Serve)


def run(
    path: Annotated[str | None, Parameter(name="MODEL")] = None,
    /,
    *,
    offer: Annotated[Offer, Parameter(name="*")] = Offer(),
    engine: EngineFlags = Engine(),
) -> None:
    """Offer a model over HTTP, as OpenAI and vLLM do.

    Prints the resolved plan, where memory goes, and one line with the address when requests are welcome. Ctrl-C or
    SIGTERM lets requests that run come to their end first; twice ends them at once.

    Parameters
    ----------
    path
        the model, as for --model
    """
    began = _began()
    config = ServeConfig(
        model=engine.model, memory=engine.memory, schedule=engine.schedule, serve=offer.serve
    )
    if path is not None:
        if config.model.path not in (ServeConfig().model.path, path):
            raise Refused(f"two models are given: {path} and {config.model.path}", hint="leave --model out")
        config = replace(config, model=replace(config.model, path=path))
    supervisor = Supervisor(config)  # first of all: the engine starts while everything else is imported
    try:
        from rich.console import Console

        from headrace.cli._load import Meter
        from headrace.serve.run import serve
    except BaseException:
        supervisor.stop()
        raise
    meter = Meter(Console(stderr=True), lines=True)

    def said(facts: "Facts", url: str) -> None:
        meter.stop()
        _say(facts, url, monotonic() - began)

    def notify(doing: str, part: float) -> None:
        if part:  # to look for a model takes no time, or shows a bar of its own
            meter.tell(doing, part)

    try:
        serve(config, supervisor, said, notify)
    finally:
        meter.stop()


def _say(facts: "Facts", url: str, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    plan = Table(title="plan", show_header=False)
    plan.add_column()
    plan.add_column(overflow="fold")
    for line in facts.plan.splitlines():
        name, _, value = line.partition("  ")
        plan.add_row(name, value.strip())
    memory = Table(title="memory", show_header=False)
    memory.add_column()
    memory.add_column(justify="right")
    for name, text in MEMORY.items():
        if name in facts.memory:
            memory.add_row(text, f"{facts.memory[name] / 2**20:,.1f} MiB")
    for table in (plan, memory):
        console.print(table)
    console.print(
        f"{facts.served[0]} is ready at {url} after {seconds:.1f} s", soft_wrap=True, highlight=False
    )
    sys.stdout.flush()


def _began() -> float:
    """When this process began, on the monotonic clock; imports are part of what a start takes."""
    now = monotonic()
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (clock_gettime(CLOCK_BOOTTIME) - ticks / 100)
    except (OSError, IndexError, ValueError):
        return now
