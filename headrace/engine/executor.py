"""Where steps run: one runner in this process. Ranks in other processes will answer the same call."""

from headrace.engine.constrain import Masks
from headrace.engine.runner import Ahead, Pending, Runner
from headrace.engine.scheduler import Row


class Executor:
    """Passes each step to the runner, in order."""

    def __init__(self, runner: Runner):
        self.runner = runner

    def run(self, step: list[Row]) -> Pending:
        """Start a step; call the result to wait for what it gave."""
        return self.runner.run(step)

    def forward(self, step: list[Row]) -> Ahead:
        """Start a step as far as its logits. No other may be started before `draw`."""
        return self.runner.forward(step)

    def draw(self, ahead: Ahead, masks: Masks | None) -> Pending:
        """Start the rest of that step; call the result to wait for what it gave."""
        return self.runner.draw(ahead, masks)

    def check(self) -> None:
        """Wait for all that runs. Raises where the device is beyond repair: it then fails whoever asks."""
        self.runner.check()
