"""Starts the engine process, notices its death, starts it again; gives up when that happens too often. Torch-free."""

import json
import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from headrace.base.config import values
from headrace.base.errors import Broken, Fault
from headrace.serve.endings import Endings
from headrace.serve.folder import Folder
from headrace.serve.settings import ServeConfig
from headrace.serve.wire import CANNOT_START

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

log = logging.getLogger(__name__)

HOST = (sys.executable, "-m", "headrace.serve.host")
WINDOW = 300.0
"""Seconds in which `serve.restarts` deaths are borne."""

LAST_WORDS = 0.5
"""Seconds a stalled engine gets to write down where it stands."""


class Supervisor:
    """Owns the engine process and the private folder where it meets the fronts.

    Made before anything slow is imported, asyncio included: the engine starts at once. `attach` it to a loop later;
    what happened until then is told there.

    command     what to run instead of the engine, for tests
    number      of the process that runs now, from 0
    """

    def __init__(self, config: ServeConfig, command: Sequence[str] = HOST):
        self._folder = Folder()
        self.folder = self._folder.path
        self.number = -1
        self.engine: subprocess.Popen[bytes] | None = None
        self._settings = config.serve
        self._stopping = False
        self._deaths: deque[float] = deque()
        self._loop: AbstractEventLoop | None = None
        self._lost: Callable[[], None] = lambda: None
        self._give_up: Callable[[Fault], None] = lambda fault: None
        self._endings = Endings(self._mourn)
        self._words = [
            *command,
            f"--folder={self.folder}",
            f"--fronts={config.serve.fronts}",
            f"--config={json.dumps(values(config.engine))}",
            f"--served={json.dumps(config.served)}",
        ]
        self._start()

    def attach(
        self, loop: "AbstractEventLoop", lost: Callable[[], None], give_up: Callable[[Fault], None]
    ) -> None:
        """Have `lost` called on this loop whenever the engine died, `give_up` when it will not be started again."""
        self._loop, self._lost, self._give_up = loop, lost, give_up
        self._endings.attach(loop)

    def restart(self, why: str) -> None:
        """The engine makes no progress: have it say where it stands, kill it; its death has it started again."""
        engine = self.engine
        if engine is None or self._loop is None:
            return
        log.error("the engine is restarted: %s; where its threads are follows", why)
        engine.send_signal(signal.SIGUSR1)
        engine.send_signal(signal.SIGCONT)  # in case it was stopped
        self._loop.call_later(LAST_WORDS, engine.kill)

    def stop(self) -> None:
        """End the engine and remove the folder."""
        self._stopping = True
        if self.engine is not None:
            self.engine.kill()
            self.engine.wait()
            if self.engine.stdin is not None:
                self.engine.stdin.close()
        self._folder.remove()

    def _start(self) -> None:
        self.number += 1
        self.engine = subprocess.Popen(
            [*self._words, f"--number={self.number}"],
            stdin=subprocess.PIPE,  # closed by our end, whatever that is: so the engine knows that it is alone
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for us
        )
        self._endings.watch(self.number, self.engine)

    def _mourn(self, number: int, code: int, _lived: float) -> None:
        if self._stopping or number != self.number or self._loop is None:
            return
        if self.engine is not None and self.engine.stdin is not None:
            self.engine.stdin.close()
        self._lost()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == CANNOT_START:  # it has said why, through the socket; this is for a message that got lost
            self._loop.call_later(5.0, self._give_up, Broken("the engine cannot start; its log says why"))
            return
        now = monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - WINDOW:
            self._deaths.popleft()
        if len(self._deaths) > self._settings.restarts:
            self._give_up(
                Broken(
                    f"the engine died {len(self._deaths)} times within {WINDOW / 60:g} minutes, last with {how}",
                    hint="its last messages are in the log; serve.restarts says how often it is started again",
                )
            )
            return
        log.error("the engine died (%s) and is started again", how)
        self._start()
