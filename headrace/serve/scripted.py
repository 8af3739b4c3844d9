"""An engine process without a model: `python -m headrace.serve.scripted`, to test and to measure what is in front.

The n-th token of an answer depends on the prompt, the seed and n alone, as with a model that is run greedily or with
a seed; so an answer that is resumed must come out the same. Prompts may ask for accidents, see ACCIDENTS.
"""

import argparse
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from headrace.base.config import Config
from headrace.base.errors import Refused
from headrace.engine.request import Event, Request, SamplingParams
from headrace.serve.entry import run
from headrace.serve.loop import Host
from headrace.serve.wire import Facts, Stats

VOCAB = 259
"""Bytes and three special tokens, as the tiny models of the tests have."""

FIRST, LAST = 3, 258
"""Tokens that answers consist of."""

ACCIDENTS = {
    (7, 7, 1): "hangs from the third token on",
    (7, 7, 2): "kills the process at the third token",
    (7, 7, 3): "raises, so that the process ends, at the third token",
    (7, 7, 4): "is refused by the engine",
}
"""Prompts that begin like this."""


def token(prompt: Sequence[int], seed: int | None, n: int) -> int:
    """The n-th token, from 0, of the answer to a prompt."""
    mixed = (sum(prompt) * 2654435761 + len(prompt) * 40503 + (seed or 0) * 97 + n * 2246822519) >> 7
    return FIRST + mixed % (LAST + 1 - FIRST)


class Scripted:
    """Answers `rows` requests at once, a token each per step; a step takes `step_seconds` at least."""

    def __init__(self, rows: int, blocks: int, block: int, step_seconds: float):
        self._rows, self._blocks, self._block, self._seconds = rows, blocks, block, step_seconds
        self._waiting: deque[Request] = deque()
        self._running: dict[str, tuple[Request, int]] = {}
        self._scheduled: dict[str, float] = {}
        self._next = 0.0
        self._prompt_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> None:
        if request.prompt[:3] == (7, 7, 4):
            raise Refused("the engine does not like this prompt", param="prompt")
        self._waiting.append(request)

    def cancel(self, id: str) -> Event | None:
        if self._running.pop(id, None) is None:
            self._waiting = deque(one for one in self._waiting if one.id != id)
        return None

    def rows(self) -> list[tuple[str, int, int]]:
        return [
            (id, len(one.prompt) + made, len(one.prompt) + made + 1)
            for id, (one, made) in list(self._running.items())
        ]

    def report(self, stats: Stats) -> None:
        stats.running, stats.waiting = len(self._running), len(self._waiting)
        held = sum(-(-(len(one.prompt) + made) // self._block) for one, made in self._running.values())
        stats.kv_used = held / self._blocks
        stats.prompt_tokens = self._prompt_tokens
        stats.step_rows = stats.step_tokens = len(self._running)

    def step(self) -> list[Event]:
        now = time.monotonic()
        if self._seconds:
            time.sleep(max(0.0, self._next - now))
            self._next = max(now, self._next) + self._seconds
        while self._waiting and len(self._running) < self._rows:
            request = self._waiting.popleft()
            self._running[request.id] = request, len(request.emitted)
            self._scheduled[request.id] = now
            self._prompt_tokens += len(request.prompt)
        events: list[Event] = []
        for id, (request, made) in list(self._running.items()):
            if made >= 2 and request.prompt[:3] in ACCIDENTS:
                _have_accident(request.prompt[2])
            events.append(self._speak(request, made))
            if events[-1].finish:
                del self._running[id]
            else:
                self._running[id] = request, made + 1
        return events

    def _speak(self, request: Request, made: int) -> Event:
        new = token(request.prompt, request.params.seed, made)
        stops = new in request.stop_ids and made + 1 >= request.params.min_tokens
        finish = "stop" if stops else "length" if made + 1 >= request.max_tokens else None
        scheduled = self._scheduled.pop(request.id, None)
        return Event(request.id, new, finish, new if stops else None, scheduled=scheduled)


def _have_accident(kind: int) -> None:
    if kind == 1:
        while True:
            time.sleep(1)
    if kind == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("an accident in a step")


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="headrace.serve.scripted", add_help=False)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    given, rest = parser.parse_known_args(words)

    def build(config: Config, served: tuple[str, ...], host: Host, folder: Path) -> tuple[Scripted, Facts]:
        path = Path(config.model.path)
        tokenizer = str(path) if (path / "tokenizer.json").is_file() else None
        host.say("reading the script", 0.5, tokenizer)
        if config.model.path == "missing":
            raise Refused("there is no such script", param="model.path")
        time.sleep(given.load_seconds)
        rows, blocks, block = (
            config.schedule.rows or 256,
            config.memory.kv_blocks or 4096,
            config.memory.block,
        )
        facts = Facts(
            model=config.model.path,
            served=served,
            path=config.model.path,
            created=int(time.time()),
            max_len=config.model.max_len or 4096,
            vocab=VOCAB,
            eos_ids=frozenset({2}),
            defaults=SamplingParams(temperature=0),
            kv_blocks=blocks,
            block=block,
            rows=rows,
            tokens=config.schedule.tokens or 2048,
            kv_tokens=blocks * block,
            plan="scripted",
            memory={},
            device="script",
            dtype="none",
            kv_dtype="none",
            tokenizer=tokenizer,
            step_seconds=given.step_seconds,
        )
        return Scripted(rows, blocks, block, given.step_seconds), facts

    run(rest, build)


if __name__ == "__main__":
    main(sys.argv[1:])
