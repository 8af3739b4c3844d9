"""The engine process's loop: take what the fronts sent, make a step, tell every front what it gave; torch-free."""

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from time import monotonic, process_time
from typing import Protocol, assert_never

import zmq

from headrace.base.errors import Broken, Fault
from headrace.engine.request import Event, Request
from headrace.serve import wire

log = logging.getLogger(__name__)

BEAT = 0.25
"""Seconds between two pulses."""

REPORT = 0.05
"""Seconds between two Stats while there is work."""


class Steps(Protocol):
    """What the loop needs of an engine."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything left to do."""
        ...

    def add(self, request: Request) -> None:
        """Put a request in line. Raises Fault."""
        ...

    def cancel(self, id: str) -> Event | None:
        """End a request now."""
        ...

    def step(self) -> list[Event]:
        """Make a step."""
        ...

    def report(self, stats: wire.Stats) -> None:
        """Enter what it knows into `stats`; the loop knows steps, times and generated tokens."""
        ...

    def rows(self) -> list[tuple[str, int, int]]:
        """The step that runs, or was last: (request, first position, last position + 1)."""
        ...


class Fronts:
    """The engine's sockets, one to each front process. Those of one thread; messages to a front keep their order."""

    def __init__(self, folder: str | Path, number: int, fronts: int, letter: bytes = b"E"):
        self._zmq = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []
        self._poller = zmq.Poller()
        for front in range(fronts):
            socket = self._zmq.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, letter + b"%d" % number)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.setsockopt(zmq.LINGER, 5000)
            socket.connect(wire.address(folder, front))
            self.sockets.append(socket)
            self._poller.register(socket, zmq.POLLIN)

    def send(self, front: int, message: wire.FromEngine) -> None:
        self.sockets[front].send(wire.encode(message), zmq.NOBLOCK)

    def send_all(self, message: wire.FromEngine) -> None:
        body = wire.encode(message)
        for socket in self.sockets:
            socket.send(body, zmq.NOBLOCK)

    def wait(self) -> None:
        """Until some front has said something."""
        self._poller.poll()

    def receive(self, front: int) -> bytes | None:
        """The next message of a front, if it is here."""
        try:
            return self.sockets[front].recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Send what is left, for five seconds at most."""
        for socket in self.sockets:
            socket.close()
        self._zmq.term()


class Host:
    """Runs an engine for the fronts, for ever."""

    def __init__(self, folder: Path, number: int, fronts: int):
        self.fronts = Fronts(folder, number, fronts)
        self.stats = wire.Stats()
        self._folder, self._number = folder, number
        self._engine: Steps | None = None
        self._facts: wire.Facts | None = None
        self._boots = [-1] * fronts
        self._owner: dict[str, int] = {}
        self._reported = 0.0
        self._began: float | None = None
        self._stop = Flag()
        self._pulse = Thread(target=self._beat, name="headrace-pulse", daemon=True)
        self._pulse.start()

    def say(self, doing: str, part: float, tokenizer: str | None = None) -> None:
        """Tell what is being loaded."""
        self.fronts.send_all(wire.Loading(doing, part, tokenizer))

    def fail(self, fault: Fault) -> None:
        """Tell that the engine cannot be started."""
        self.fronts.send_all(wire.Failed(wire.Refusal.of("", fault)))
        self.close()

    def close(self) -> None:
        self._stop.set()
        self._pulse.join()
        self.fronts.close()

    def serve(self, engine: Steps, facts: wire.Facts, until: Callable[[], bool] = lambda: False) -> None:
        """Answer the fronts. What the engine raises and could not blame on a request passes through."""
        self._engine, self._facts = engine, facts
        gc.collect()
        gc.freeze()  # what is here now stays: no need to look through it again between steps
        while not until():
            if not engine.busy:
                self.fronts.wait()
            self._take_all(engine)
            if engine.busy:
                self._step(engine)
            elif self.stats.running or self.stats.waiting:  # the last ones were cancelled
                engine.report(self.stats)
                self.fronts.send_all(wire.Events(self.stats.steps, [], self.stats))

    # -- one turn -------------------------------------------------------------------------------------------------

    def _take_all(self, engine: Steps) -> None:
        for front in range(len(self.fronts.sockets)):
            while (body := self.fronts.receive(front)) is not None:
                self._take(engine, front, wire.decode_to_engine(body))

    def _take(self, engine: Steps, front: int, message: wire.ToEngine) -> None:
        match message:
            case wire.Add(requests):
                self._add(engine, front, requests)
            case wire.Cancel(ids):
                for id in ids:
                    engine.cancel(id)
                    self._owner.pop(id, None)
            case wire.Hello(boot):
                if self._boots[front] not in (-1, boot):
                    self._leave(engine, front)
                self._boots[front] = boot
                assert self._facts is not None
                self.fronts.send(front, wire.Ready(self._facts, boot))
            case wire.Relay(_, to):
                for other in range(len(self.fronts.sockets)):
                    if other != front and to in (-1, other):
                        self.fronts.send(other, message)
            case _:
                assert_never(message)

    def _add(self, engine: Steps, front: int, requests: list[Request]) -> None:
        refused: list[wire.Refusal] = []
        for request in requests:
            try:
                engine.add(request)
                self._owner[request.id] = front
            except Fault as fault:
                refused.append(wire.Refusal.of(request.id, fault))
            except Exception:  # it would end every further engine, too: not begun, it is never suspected
                log.exception("request %s could not be put in line and is ended", request.id)
                engine.cancel(request.id)
                fault = Broken("the request failed in the engine", hint="the server's log says why")
                refused.append(wire.Refusal.of(request.id, fault))
        if refused:
            self.fronts.send(front, wire.Refusals(refused))

    def _leave(self, engine: Steps, front: int) -> None:
        """A front process is gone, and with it everyone who waited there."""
        for id in [id for id, owner in self._owner.items() if owner == front]:
            engine.cancel(id)
            del self._owner[id]

    def _step(self, engine: Steps) -> None:
        began = self._began = monotonic()
        events = engine.step()
        now = monotonic()
        self._began = None
        stats = self.stats
        stats.steps += 1
        stats.step_seconds = now - began
        stats.busy_seconds += now - began
        shares: list[list[Event]] = [[] for _ in self.fronts.sockets]
        owner = self._owner
        for event in events:
            if event.token is not None:
                stats.generated += 1
            front = owner.get(event.id)
            if front is not None:
                shares[front].append(event)
                if event.finish is not None:
                    del owner[event.id]
        told = None
        if now - self._reported > REPORT or not engine.busy:
            engine.report(stats)
            told, self._reported = stats, now
        for front, share in enumerate(shares):
            if share or told is not None:
                self.fronts.send(front, wire.Events(stats.steps, share, told))

    def _beat(self) -> None:
        """The pulse thread: sockets of its own, so that it beats whatever the other thread does."""
        fronts = Fronts(self._folder, self._number, len(self.fronts.sockets), b"P")
        while not self._stop.wait(BEAT):
            engine, busy = self._engine, self._began is not None
            rows = engine.rows() if engine is not None and busy else []
            fronts.send_all(wire.Pulse(self.stats.steps, busy, process_time(), rows))
        fronts.close()
