"""The loop: plan a step, run it, commit what came back; with one step in flight where that pays."""

import logging
from collections import deque
from contextlib import suppress
from time import monotonic

from headrace.base.errors import Refused, TooLong
from headrace.engine.blocks import BlockPool
from headrace.engine.constrain import Constraints, End
from headrace.engine.grammar import Compiler
from headrace.engine.policy import policy
from headrace.engine.request import Event, Request
from headrace.engine.resolve import Plan
from headrace.engine.runner import Ahead, Pending, Runner
from headrace.engine.scheduler import Row, Scheduler
from headrace.engine.sequence import Sequence

log = logging.getLogger(__name__)

PATIENCE = 0.02
"""Seconds a step waits for a grammar to be compiled where there is nothing else to do."""


class Engine:
    """Turns requests into events. Not thread-safe: one thread calls it.

    latest      the step that was begun last        fresh   whether the last call of `step` began it
    faults      steps that failed
    suspects    after a step failed, sets of requests that are tried apart until the one that fails is found
    """

    def __init__(self, plan: Plan, runner: Runner, compiler: Compiler | None = None):
        self.plan, self.runner = plan, runner
        self.scheduler = _scheduler(plan)
        self.constraints = Constraints(compiler, plan.rows, pinned=plan.device.type == "cuda")
        self.depth = 1 if plan.overlap else 0
        self.flight: deque[tuple[list[Row], Pending]] = deque()
        self.lost: list[Event] = []
        self.latest: list[Row] = []
        self.fresh = False
        self.faults = 0
        self.suspects: list[list[Sequence]] = []
        self._open: tuple[list[Row], Ahead] | None = None  # the newest step, if its tokens wait for masks
        self._planned: list[Row] = []  # the step that comes next
        self._blamed: list[Row] | None = None  # the step that is being run, waited for or committed
        self._events: list[Event] = []

    @property
    def busy(self) -> bool:
        """Whether `step` has anything left to do."""
        under_way = self.flight or self._open
        return bool(self.scheduler.live or under_way or self.lost or self.constraints.waiting)

    def add(self, request: Request) -> None:
        """Put a request in line. Raises TooLong if it could not run even alone, Refused if its id is in use."""
        if request.longest > self.plan.max_len:
            raise TooLong(
                f"prompt of {len(request.prompt)} and up to {request.max_tokens} new tokens are {request.longest};"
                f" the maximum context length is {self.plan.max_len}"
            )
        if request.id in self.constraints.waiting:
            raise Refused(f"request id {request.id!r} is in use", param="request_id")
        if request.grammar is None:
            self.scheduler.add(request)
        else:
            self.scheduler.check(request)
            self.constraints.order(request)

    def cancel(self, id: str, finish: str = "abort") -> Event | None:
        """End a request now. None if it has ended already."""
        if self.constraints.waiting.pop(id, None) is not None:
            return Event(id, None, finish)
        return self.scheduler.cancel(id, finish)

    def forget(self) -> None:
        """Empty the prefix cache."""
        self.scheduler.pool.forget_all()

    def step(self) -> list[Event]:
        """Start the next step and return what the oldest one gave; blocks while the device works.

        A request that raises inside a step ends alone, with "error": the step is lost, and its requests are tried
        apart, half by half, until it is found. If the device is beyond repair, or the step is interrupted, all
        requests are lost: that is raised, the next call says so, and the engine is as new.
        """
        if self.lost:
            lost, self.lost = self.lost, []
            return lost
        self._events, self._blamed = [], None
        try:
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends one request and not all
                self._isolate(error)
        except BaseException:
            self._start_over()
            raise
        return self._events

    def _step(self) -> None:
        """Plan and start a step, land the oldest.

        One whose samples must wait for masks is left open: what came before it is committed while the device computes
        its logits, and while its masks are made events are told and the step after is planned; then the device gets
        the rest of the one and the other at once.
        """
        if self.constraints.waiting:
            self._admit_compiled()
        group = self._next_suspects()
        step = self.scheduler.plan(set(group) if group else None)
        if group and not step:  # they must wait for memory that others hold
            self.suspects.clear()
            group, step = None, self.scheduler.plan()
        self.fresh, self._planned = bool(step), step
        if self._open is not None and step:
            with suppress(Exception):  # what is wrong with the step shows when it is started
                self.runner.prepare(step)  # while masks are made
        self._draw_open()
        if step:
            self._begin(step)
            self._planned = []
        if self._open is not None:
            alone = bool(group) or not self.depth
            self._catch_up(beside=not alone)
            if not alone:
                return
            self._draw_open()
        if not self.flight or (step and len(self.flight) <= self.depth and not group):
            return
        self._land()
        if group:
            self.suspects.pop()

    def _begin(self, step: list[Row]) -> None:
        """Start a step: to its end, or as far as its logits where samples must wait for masks."""
        self._note(step)
        self._blamed = step
        if self.constraints.concern(step):
            self._open = step, self.runner.forward(step)
        else:
            self.flight.append((step, self.runner.run(step)))

    def _catch_up(self, beside: bool) -> None:
        """For a step whose logits are being computed: commit what came before, begin the masks that need it."""
        assert self._open is not None
        while self.flight:
            self._commit()
        self._blamed, _ = self._open
        self.constraints.begin(self._blamed, beside)

    def _draw_open(self) -> None:
        """Start the rest of the open step, if there is one: tokens, of what the masks allow."""
        if self._open is None:
            return
        self._blamed, ahead = self._open
        masks, ends = self.constraints.masks()
        if ends and ahead.prompt:  # who ends now hears nothing of the step later
            self._events += self.scheduler.score(self._blamed, ahead.prompt)
        self._end_all(ends)
        self.flight.append((self._blamed, self.runner.draw(ahead, masks)))
        self._open = None

    def _land(self) -> None:
        """Wait for the oldest step in flight, commit it, and end whose answers are complete by their grammars."""
        done = self._commit()
        if self.constraints.used:
            self._end_all(self.constraints.follow(done))

    def _commit(self) -> list[Row]:
        done, pending = self.flight.popleft()
        self._blamed = done
        self.scheduler.commit(done, pending(), self._events)
        return done

    def _admit_compiled(self) -> None:
        """Put requests in line whose grammar is ready."""
        if not (self.scheduler.live or self.flight):
            self.constraints.wait(PATIENCE)
        ready, failed = self.constraints.ready()
        for request, matcher in ready:
            self.scheduler.add(request)
            self.scheduler.live[request.id].matcher = matcher
        self._events += [Event(id, None, "error") for id in failed]

    def _end_all(self, ends: list[End]) -> None:
        for id, finish in ends:
            if (event := self.scheduler.cancel(id, finish)) is not None:
                self._events.append(event)

    def _note(self, step: list[Row]) -> None:
        self.latest = step
        now = monotonic()
        for row in step:
            if row.new is not None and row.seq.scheduled is None:
                row.seq.scheduled = now

    # -- after a failure ------------------------------------------------------------------------------------------

    def _next_suspects(self) -> list[Sequence] | None:
        """The next group to be tried apart, without those that have ended."""
        while self.suspects:
            group = [seq for seq in self.suspects[-1] if not seq.finished]
            if group:
                self.suspects[-1] = group
                return group
            self.suspects.pop()
        return None

    def _isolate(self, error: Exception) -> None:
        """A step raised. Nothing of it is kept; the only request in it ends, of several each half is tried apart."""
        blamed = self._blamed
        if blamed is None:
            raise error  # nobody's request, but the planning itself
        self.faults += 1
        self.runner.check()
        lost = self._land_older(blamed)
        seqs = dict.fromkeys(row.seq for step in lost for row in step if not row.seq.finished)
        self.scheduler.rewind(seqs)
        found = [seq for seq in dict.fromkeys(row.seq for row in blamed) if seq in seqs]
        if self.suspects:
            self.suspects.pop()
        if len(found) == 1:
            self._end(found[0], error)
        elif found:
            half = len(found) // 2
            self.suspects += [found[half:], found[:half]]

    def _land_older(self, blamed: list[Row]) -> list[list[Row]]:
        """Steps that were begun before the one that failed are good, unless they fail as well; the lost ones."""
        if self.flight and blamed is self.latest:  # it failed to start: older ones are still in flight
            try:
                while self.flight:
                    self._land()
            except Exception as error:  # noqa: BLE001 - one fault is dealt with at a time
                log.warning("a step before the failed one failed as well: %s", error)
        lost = [blamed, *(step for step, _ in self.flight), self._planned]
        if self._open is not None:
            lost.append(self._open[0])
        if self._blamed is not None and self._blamed is not blamed:
            lost.append(self._blamed)
        self._forget_flight()
        return lost

    def _forget_flight(self) -> None:
        self.constraints.drop()
        self.flight.clear()
        self._open, self._planned = None, []

    def _end(self, seq: Sequence, error: Exception) -> None:
        log.error("request %s failed in a step and is ended", seq.request.id, exc_info=error)
        if (event := self.scheduler.cancel(seq.request.id, "error")) is not None:
            self._events.append(event)

    def _start_over(self) -> None:
        """What the scheduler believes may not be what the device did; nothing of it is kept."""
        self.lost += self._events
        self.lost += [Event(id, None, "error") for id in self.scheduler.live]
        self._forget_flight()
        self.suspects.clear()
        counts, self.scheduler = self.scheduler.counts, _scheduler(self.plan)
        self.scheduler.counts = counts


def _scheduler(plan: Plan) -> Scheduler:
    pool = BlockPool(plan.kv_blocks, plan.block, plan.layout.groups)
    return Scheduler(pool, plan.tokens, plan.rows, policy(plan.policy), plan.prefix_cache, plan.speculate)
