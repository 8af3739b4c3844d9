"""Where steps run: one runner in this process. Ranks in other processes will answer the same call."""

from headrace.engine.runner import Pending, Runner
from headrace.engine.scheduler import Row


class Executor:
    """Passes each step to the runner, in order."""

    def __init__(self, runner: Runner):
        self.runner = runner

    def run(self, step: list[Row]) -> Pending:
        """Start a step; call the result to wait for what it gave."""
        return self.runner.run(step)
