"""The loop: plan a step, run it, commit what came back; with one step in flight where that pays."""

from collections import deque

from headrace.base.errors import TooLong
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
        self.plan, self.executor = plan, executor
        self.scheduler = _scheduler(plan)
        self.depth = 1 if plan.overlap else 0
        self.flight: deque[tuple[list[Row], Pending]] = deque()
        self.lost: list[Event] = []

    @property
    def busy(self) -> bool:
        """Whether `step` has anything left to do."""
        return bool(self.scheduler.live or self.flight or self.lost)

    def add(self, request: Request) -> None:
        """Put a request in line. Raises TooLong if it could not run even alone, Refused if its id is in use."""
        if request.longest > self.plan.max_len:
            raise TooLong(
                f"prompt of {len(request.prompt)} and up to {request.max_tokens} new tokens are {request.longest};"
                f" the maximum context length is {self.plan.max_len}"
            )
        self.scheduler.add(request)

    def cancel(self, id: str, finish: str = "abort") -> Event | None:
        """End a request now. None if it has ended already."""
        return self.scheduler.cancel(id, finish)

    def step(self) -> list[Event]:
        """Start the next step and return what the oldest one gave; blocks while the device works.

        If it fails or is interrupted, all requests are lost: the next call says so, and the engine is as new.
        """
        if self.lost:
            lost, self.lost = self.lost, []
            return lost
        try:
            return self._step()
        except BaseException:
            self._start_over()
            raise

    def _step(self) -> list[Event]:
        step = self.scheduler.plan()
        if step:
            self.flight.append((step, self.executor.run(step)))
        if not self.flight or (step and len(self.flight) <= self.depth):
            return []
        done, pending = self.flight.popleft()
        return self.scheduler.commit(done, pending())

    def _start_over(self) -> None:
        """What the scheduler believes may not be what the device did; nothing of it is kept."""
        self.lost += [Event(id, None, "error") for id in self.scheduler.live]
        self.flight.clear()
        counts, self.scheduler = self.scheduler.counts, _scheduler(self.plan)
        self.scheduler.counts = counts


def _scheduler(plan: Plan) -> Scheduler:
    pool = BlockPool(plan.kv_blocks, plan.block, plan.layout.groups)
    return Scheduler(pool, plan.tokens, plan.rows, policy(plan.policy), plan.prefix_cache)
