"""The loop: plan a step, run it, commit what came back; with one step in flight where that pays."""

from collections import deque

from headrace.engine.blocks import BlockPool
from headrace.engine.executor import Executor
from headrace.engine.policy import policy
from headrace.engine.request import Event, Request
from headrace.engine.resolve import Plan
from headrace.engine.runner import Pending
from headrace.engine.scheduler import Row, Scheduler


class Engine:
    """Turns requests into events. Not thread-safe: one thread calls it."""

    def __init__(self, plan: Plan, executor: Executor):
        pool = BlockPool(plan.kv_blocks, plan.block, plan.layout.groups)
        self.plan, self.executor = plan, executor
        self.scheduler = Scheduler(pool, plan.tokens, plan.rows, policy(plan.policy), plan.prefix_cache)
        self.depth = 1 if plan.overlap else 0
        self.flight: deque[tuple[list[Row], Pending]] = deque()

    @property
    def busy(self) -> bool:
        """Whether `step` has anything left to do."""
        return bool(self.scheduler.live or self.flight)

    def add(self, request: Request) -> None:
        """Put a request in line. Raises TooLong if it could not run even alone."""
        self.scheduler.add(request)

    def cancel(self, id: str, finish: str = "abort") -> Event | None:
        """End a request now. None if it has ended already."""
        return self.scheduler.cancel(id, finish)

    def step(self) -> list[Event]:
        """Start the next step and return what the oldest one gave; blocks while the device works."""
        step = self.scheduler.plan()
        if step:
            self.flight.append((step, self.executor.run(step)))
        if not self.flight or (step and len(self.flight) <= self.depth):
            return []
        done, pending = self.flight.popleft()
        return self.scheduler.commit(done, pending())
