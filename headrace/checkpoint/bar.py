"""Shows on standard error how far a long transfer has come."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Report = Callable[[str, int, int], None]  # what is going on, bytes done, bytes in all


class Bar(Progress):
    """A `Report` that draws a bar in a terminal and elsewhere prints a line per stage; used in a `with`."""

    def __init__(self, console: Console | None = None):
        console = console or Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}"),
            *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stage = ""
        self._task = self.add_task("", visible=False)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self.reset(self._task, description=stage, visible=True)
            if self.disable:
                self.console.print(f"{stage} ({total / 1e6:.0f} MB)", highlight=False, soft_wrap=True)
        self.update(self._task, completed=min(done, total), total=total)
