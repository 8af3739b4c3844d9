"""Loading a model for a command, with its progress on standard error."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from headrace.base.config import Config

if TYPE_CHECKING:
    from headrace.api.llm import LLM


def load(config: Config) -> "LLM":
    """The model, ready. In a terminal a bar shows how far it is; it is gone when the model is there."""
    console = Console(stderr=True)
    with console.status("starting"):
        from headrace.api.llm import LLM  # not before: loading torch takes seconds, and that is shown
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bars.add_task("", total=1.0)

    def tell(stage: str, part: float) -> None:
        bars.start()  # not before: a download, which comes first, shows a bar of its own
        bars.update(task, description=stage, completed=part)

    try:
        return LLM(config=config, progress=tell)
    finally:
        bars.stop()
