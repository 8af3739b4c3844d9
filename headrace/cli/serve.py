"""Offers a model over HTTP."""

import sys
import time
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from headrace.base.words import size
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
USUAL = Serve()


def run(
    path: Annotated[str | None, Parameter(name="MODEL")] = None,
    /,
    *,
    flags: Annotated[Serve, Parameter(name="*", group=Group("Server", sort_key=1))] = USUAL,
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
    engine = engine.of(path)
    config = ServeConfig(model=engine.model, memory=engine.memory, schedule=engine.schedule, serve=flags)
    supervisor = Supervisor(config)  # first of all: the engine starts while everything else is imported
    try:
        from headrace.cli._load import Meter
        from headrace.serve.run import serve
    except BaseException:
        supervisor.stop()
        raise
    with Meter(lines=10) as meter:

        def said(facts: "Facts", url: str) -> None:
            meter.stop()
            _say(facts, url, monotonic() - began)

        def notify(doing: str, part: float) -> None:
            if part:  # to look for a model takes no time, or shows a bar of its own
                meter.tell(doing, part)

        serve(config, supervisor, said, notify)


def _say(facts: "Facts", url: str, seconds: float) -> None:
    from rich.console import Console

    from headrace.cli._print import sheet, table

    console = Console()
    plan = [line.partition("  ") for line in facts.plan.splitlines()]
    sizes = facts.memory
    rows = [(text, size(sizes[name])) for name, text in MEMORY.items() if name in sizes]
    console.print(sheet("plan", [(name, value.strip()) for name, _, value in plan]))
    console.print(table(("", ""), rows, title="memory", show_header=False))
    console.print(
        f"{facts.served[0]} is ready at {url} after {seconds:.1f} s", soft_wrap=True, highlight=False
    )
    sys.stdout.flush()


def _began() -> float:
    """When this process began, on the monotonic clock; imports are part of what a start takes."""
    now = monotonic()
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100)
    except (AttributeError, OSError, IndexError, ValueError):  # only Linux says it
        return now
