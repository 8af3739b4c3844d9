"""Further front processes behind the same port: started with the socket, started again when they die."""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from headrace.base.config import values
from headrace.base.errors import Broken, Fault
from headrace.serve.endings import Endings
from headrace.serve.settings import ServeConfig

log = logging.getLogger(__name__)

SHORT_LIFE, SHORT_LIVES = 30.0, 3
"""Seconds, and so many lives in a row that were shorter: then a worker will not live at all."""

WAIT = 10.0
"""Seconds that workers get, beyond those they drain, before they are killed."""


class Workers:
    """The front processes number 1 and up. The first one is this process."""

    def __init__(self, config: ServeConfig, folder: Path, sock: socket.socket):
        self._config, self._folder, self._sock = config, folder, sock
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._short: dict[int, int] = {}
        self._endings = Endings(self._mourn)
        self._stopping = False
        self._give_up: Callable[[Fault], None] = lambda fault: None
        for number in range(1, config.serve.fronts):
            self._start(number)

    def attach(self, give_up: Callable[[Fault], None]) -> None:
        """Have `give_up` called on this loop when a worker cannot live."""
        self._give_up = give_up
        self._endings.attach(asyncio.get_running_loop())

    def terminate(self) -> None:
        """Have them end: they drain like the first process."""
        self._stopping = True
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait for them to end."""
        self.terminate()
        end = monotonic() + self._config.serve.drain_seconds + WAIT
        for process in self._processes.values():
            try:
                process.wait(max(0.1, end - monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _start(self, number: int) -> None:
        process = self._processes[number] = subprocess.Popen(
            [sys.executable, "-m", "headrace.serve.worker"],
            stdin=subprocess.PIPE,  # stays open: when it ends, so does the worker
            stdout=subprocess.DEVNULL,
            pass_fds=(self._sock.fileno(),),
            start_new_session=True,
        )
        words = {"number": number, "folder": str(self._folder), "fd": self._sock.fileno()}
        words["knobs"] = values(self._config)  # keys are among them: not on the command line
        assert process.stdin is not None
        process.stdin.write(json.dumps(words).encode() + b"\n")
        process.stdin.flush()
        self._endings.watch(number, process)

    def _mourn(self, number: int, code: int, lived: float) -> None:
        if self._stopping:
            return
        if (theirs := self._processes[number].stdin) is not None:
            theirs.close()
        self._short[number] = self._short.get(number, 0) + 1 if lived < SHORT_LIFE else 0
        if self._short[number] >= SHORT_LIVES:
            self._give_up(
                Broken(
                    f"front process {number} died {SHORT_LIVES} times, last after {lived:.1f} s with exit code {code}"
                )
            )
            return
        log.error("front process %d died with exit code %d and is started again", number, code)
        self._start(number)
