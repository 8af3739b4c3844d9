"""Loading a model for a command, with its progress on standard error."""

import gc
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from headrace.base.config import Config
from headrace.kernels.ahead import begin_early

if TYPE_CHECKING:
    from headrace.api.llm import LLM


class Meter:
    """How far something is: a bar in a terminal, gone at the end; elsewhere lines.

    lines   of these for each stage: 1, 10 for one per tenth, or none
    clock   the time that it took and will take, instead of the part that is done
    """

    def __init__(self, console: Console | None = None, lines: int = 0, clock: bool = False):
        self._console = console = console or Console(stderr=True)
        self._lines = 0 if console.is_terminal else lines
        self._said = ("", 0)
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            *(times if clock else (TaskProgressColumn(),)),
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bars.add_task("", total=1.0)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tell(self, stage: str, part: float) -> None:
        """Something was done: so much, from 0 to 1, of a stage, which ends at a colon if it has one."""
        self._bars.update(self._task, description=stage, completed=part)
        self._bars.start()  # not before: a download, which comes first, shows a bar of its own
        name, tenths = stage.partition(":")[0], self._lines > 1
        if self._lines and (now := (name, int(10 * part) if tenths else 0)) != self._said:
            self._said = now
            self._console.print(f"{name}: {part:.0%}" if tenths and part < 1 else name, highlight=False)

    def report(self, what: str, done: float, total: float) -> None:
        """See optimize.walk.Report."""
        self.tell(what, done / total if total else 0.0)

    def stop(self) -> None:
        """Take the bar away, for good: an engine that is started again later has lines only."""
        self._bars.stop()
        self._bars.disable = True


def load(config: Config) -> "LLM":
    """The model, ready."""
    console = Console(stderr=True)
    gc.disable()  # nearly all that is made stays, and looking for the rest is a tenth of the time to import torch
    try:
        with console.status("starting"):
            if config.model.device != "cpu":
                begin_early()
            from headrace.api.llm import LLM  # not before: loading torch takes seconds, and that is shown
        gc.freeze()  # modules are never garbage
        with Meter(console) as meter:
            return LLM(config=config, progress=meter.tell)
    finally:
        gc.enable()
