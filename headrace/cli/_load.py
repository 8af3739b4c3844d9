"""Loading a model for a command, with its progress on standard error."""

import gc
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from headrace.base.config import Config
from headrace.kernels.ahead import begin_early

if TYPE_CHECKING:
    from headrace.api.llm import LLM


class Meter:
    """How far a model is: a bar in a terminal, gone at the end. Elsewhere nothing, or `lines`, one for each tenth."""

    def __init__(self, console: Console | None = None, lines: bool = False):
        self._console = console = console or Console(stderr=True)
        self._lines = lines and not console.is_terminal
        self._said = ("", 0)
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bars.add_task("", total=1.0)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tell(self, stage: str, part: float) -> None:
        """Something was done: so much, from 0 to 1, of a stage."""
        self._bars.update(self._task, description=stage, completed=part)
        self._bars.start()  # not before: a download, which comes first, shows a bar of its own
        if self._lines and (now := (stage, int(10 * part))) != self._said:
            self._said = now
            self._console.print(f"{stage}: {part:.0%}" if part < 1 else stage, highlight=False)

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
