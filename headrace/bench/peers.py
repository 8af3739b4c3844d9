"""Runs the same token ids through this engine and others in turns, on one machine in one run, and compares times."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import IO, Any

from headrace.base.errors import Broken, Refused
from headrace.bench.result import Measure, spread
from headrace.bench.workloads import Workload

OURS = "headrace"
SCRIPT = Path(__file__).with_name("peer.py")
PATIENCE = 1800.0
"""Seconds to start an engine, or to run a workload."""
TAIL = 4000
"""Characters of an engine's own output that are shown when it fails."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine, and the Python that has it. `hold`: stop its process while others have their turn."""

    engine: str
    python: Path
    settings: dict[str, Any]
    hold: bool = True


def check(engine: str, python: Path) -> None:
    """Raises Refused for a Python that cannot be run or has not the engine; it says so without loading it."""
    hint = "give the path of the Python of an environment that has it"
    words, nowhere = [str(python), "-I", str(SCRIPT), engine], subprocess.DEVNULL
    try:
        done = subprocess.run(words, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise Refused(f"{python} cannot be run: {fault}", param=engine, hint=hint) from fault
    if done.returncode:
        raise Refused(f"{python} has no {engine}", param=engine, hint=hint)


class Contestant:
    """A peer's process. Whenever it is not its turn it is stopped by a signal, if its peer says so.

    Raises Broken, with the end of what the engine printed, if it fails or does not answer in time.
    """

    def __init__(self, peer: Peer):
        self.peer = peer
        self.facts: dict[str, Any] = {}
        self._log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed with the process
        asked, self._ask = Pipe(duplex=False)
        self._answer, answers = Pipe(duplex=False)
        ends = asked.fileno(), answers.fileno()
        self._process = subprocess.Popen(
            [str(peer.python), "-I", str(SCRIPT), peer.engine, *map(str, ends)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=ends,
            start_new_session=True,  # its helpers too are stopped and ended with it
        )
        asked.close()
        answers.close()

    def __enter__(self) -> "Contestant":
        try:
            self.facts = self._told(self.peer.settings)["ready"]
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, work: Workload) -> float:
        """Seconds that a workload takes."""
        self._signal(signal.SIGCONT)
        said = self._told({"prompts": work.prompts, "outputs": work.outputs})
        self._signal(signal.SIGSTOP)
        if said["made"] != work.tokens_out:
            raise Broken(f"{self.peer.engine} made {said['made']} tokens of {work.tokens_out} in {work.name}")
        return float(said["seconds"])

    def close(self) -> None:
        """End the process and its helpers."""
        self._ask.close()
        self._answer.close()
        for ending, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            self._signal(ending, always=True)
            self._signal(signal.SIGCONT, always=True)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
        self._log.close()

    def _signal(self, number: signal.Signals, always: bool = False) -> None:
        """To the process and all it started."""
        if not (self.peer.hold or always):
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # all of them are gone

    def _told(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message."""
        with suppress(BrokenPipeError):  # it has ended; why may be in its last words
            self._ask.send_bytes(json.dumps(message).encode())
        if not self._answer.poll(PATIENCE):
            raise self._failed(f"did not answer within {PATIENCE:.0f} s")
        try:
            said = json.loads(self._answer.recv_bytes())
        except (EOFError, OSError):
            raise self._failed("ended") from None
        if "error" in said:
            raise self._failed(f"failed with {said['error']}")
        return said

    def _failed(self, what: str) -> Broken:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - TAIL))
        said = self._log.read().decode(errors="replace").strip()
        return Broken(f"{self.peer.engine} {what}" + (f"; it said:\n{said}" if said else ""))


@dataclass(slots=True)
class Race:
    """Seconds of every engine in every round of one workload."""

    work: Workload
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, peer: str) -> list[float]:
        """Of each round: how many times longer the peer took than we."""
        return [theirs / ours for theirs, ours in zip(self.seconds[peer], self.seconds[OURS], strict=True)]

    def measures(self) -> list[Measure]:
        """Per engine the median time and tokens per second; per peer the median of the rounds' ratios."""
        name = self.work.name
        rows: list[Measure] = []
        for engine, seconds in self.seconds.items():
            rows += self.work.measures(f"{name}: {engine}", median(seconds), spread(seconds))
        for engine in self.seconds:
            if engine != OURS:
                found = self.ratios(engine)
                rows.append(Measure(f"{name}: against {engine}", median(found), "x", "higher", spread(found)))
        return rows


def race(
    contestants: Sequence[Contestant],
    works: Sequence[Workload],
    rounds: int,
    vocab: int,
    said: Callable[[str], None] = lambda _: None,
) -> list[Race]:
    """Every workload `rounds` times by every engine, in turns; each round has other tokens and another order."""
    races = [Race(work, {c.peer.engine: [] for c in contestants}) for work in works]
    for one in races:
        for contestant in contestants:
            contestant.run(one.work.warm_up(vocab))
        for number in range(rounds):
            fresh = one.work.again(number, vocab)
            turn = number % len(contestants)
            for contestant in [*contestants[turn:], *contestants[:turn]]:
                seconds = contestant.run(fresh)
                one.seconds[contestant.peer.engine].append(seconds)
                said(
                    f"{one.work.name} round {number + 1} of {rounds}: {contestant.peer.engine} {seconds:.3f} s"
                )
    return races
