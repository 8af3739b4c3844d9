"""Shows on standard error how far a long transfer has come."""

from collections.abc import Callable
from types import TracebackType

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


class Bar:
    """A `Report` that draws a bar in a terminal and elsewhere prints a line per stage; used in a `with`."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self._stage = ""
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bars = Progress(
            TextColumn("{task.description}"),
            *columns,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bars.add_task("", visible=False)

    def __enter__(self) -> "Bar":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._bars.reset(self._task, description=stage, visible=True)
            if not self.console.is_terminal:
                self.console.print(f"{stage} ({total / 1e6:.0f} MB)", highlight=False, soft_wrap=True)
        self._bars.update(self._task, completed=min(done, total), total=total)
