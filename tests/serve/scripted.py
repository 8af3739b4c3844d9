"""A front end with a scripted engine process behind it, and what its answers must be."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from headrace.base.config import replace_dotted
from headrace.engine.request import Request, SamplingParams
from headrace.serve.answer import Answer
from headrace.serve.frontend import Frontend
from headrace.serve.scripted import token
from headrace.serve.settings import ServeConfig
from headrace.serve.supervisor import Supervisor

NUMBERS = count()


def config(**knobs: Any) -> ServeConfig:
    """Knobs by name, `__` for the dot; a script without a tokenizer unless model__path is a folder with one."""
    changes = {name.replace("__", "."): value for name, value in knobs.items()}
    return replace_dotted(ServeConfig(), {"model.path": "script", "schedule.rows": 64, **changes})


def command(step_seconds: float = 0.002, load_seconds: float = 0.0) -> list[str]:
    """What starts a scripted engine."""
    words = [sys.executable, "-m", "headrace.serve.scripted"]
    return [*words, f"--step-seconds={step_seconds}", f"--load-seconds={load_seconds}"]


def held(gate: Path, words: Sequence[str] | None = None) -> list[str]:
    """As `words`, but waits as long as there is a file `gate`."""
    wait = 'while [ -e "$0" ]; do sleep 0.02; done; exec "$@"'
    return ["sh", "-c", wait, str(gate), *(command() if words is None else words)]


async def until(true: Callable[[], object]) -> None:
    """Wait for something."""
    async with asyncio.timeout(120):
        while not true():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def begun(
    settings: ServeConfig | None = None, words: Sequence[str] | None = None
) -> AsyncIterator[tuple[Frontend, Supervisor]]:
    """A front end whose engine was started; the process, its folder and the sockets are gone afterwards."""
    settings = settings or config()
    supervisor = Supervisor(settings, command() if words is None else words)
    front = Frontend(supervisor.folder, settings.serve)
    try:
        front.connection.on_stall = supervisor.restart
        supervisor.attach(asyncio.get_running_loop(), front.connection.lose, front.fail)
        yield front, supervisor
    finally:
        front.close()
        supervisor.stop()
    assert not supervisor.folder.exists()


@asynccontextmanager
async def running(
    settings: ServeConfig | None = None, words: Sequence[str] | None = None
) -> AsyncIterator[tuple[Frontend, Supervisor]]:
    """As `begun`, and ready."""
    async with begun(settings, words) as (front, supervisor):
        await asyncio.wait_for(front.until_ready(), 120)
        yield front, supervisor


def ask(prompt: Sequence[int], max_tokens: int = 20, **params: Any) -> Request:
    """A request whose params are greedy unless said otherwise."""
    given = SamplingParams(**{"temperature": 0, "max_tokens": max_tokens, "detokenize": False, **params})
    return Request(id=f"test-{next(NUMBERS)}", prompt=tuple(prompt), params=given, max_tokens=max_tokens)


async def finish(answer: Answer) -> list[tuple[list[int], str]]:
    """For each stream its tokens, as the updates brought them, and how it ended: exactly once."""
    found: list[tuple[list[int], str]] = [([], "") for _ in answer.streams]
    while updates := await asyncio.wait_for(answer.next(), 120):
        for index, update in updates:
            tokens, end = found[index]
            assert not end, "an update after the end"
            tokens += update.token_ids
            if update.finish:
                found[index] = tokens, update.finish
    assert all(end for _, end in found)
    return found


async def stuck(front: Frontend) -> None:
    """Until the engine hangs in the third step from now: it gets no further, however long the test takes to look."""
    culprit = front.submit([ask([7, 7, 1])])
    await until(lambda: len(culprit.streams[0].token_ids) == 2)
    culprit.cancel()


def expected(request: Request) -> list[int]:
    """What the script answers."""
    return [token(request.prompt, request.params.seed, n) for n in range(request.max_tokens)]
