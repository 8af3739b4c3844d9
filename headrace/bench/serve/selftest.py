"""What the client itself can take, measured against a server that does nothing but stream."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

import numpy as np

from headrace.base.errors import Broken
from headrace.bench.serve import crew
from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.connection import Target
from headrace.bench.serve.data import Synthetic
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.worker import Job

INTERVAL = 0.02
"""Seconds between the stub's tokens when the client's clock is tested."""


class Ceiling(NamedTuple):
    """What one client process can do on this machine.

    per_second      tokens it took per second, with the stub on another core
    per_core        tokens per second of its own processor time: what a core of its own would take
    jitter_p50, jitter_p99      seconds by which gaps differ from the stub's even ones, the stub's own part included
    """

    per_second: float
    per_core: float
    jitter_p50: float
    jitter_p99: float


@contextmanager
def stub(*words: str) -> Iterator[str]:
    """A stub server in a process of its own; its address."""
    command = [sys.executable, "-m", "headrace.bench.serve.stub", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        if not port:
            raise Broken("the stub server does not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def measure(seconds: float = 2.0, streams: int = 256) -> Ceiling:
    """Test the client: as fast as it can, then at an even pace."""
    with stub("--interval", "0") as url:
        taken, cpu, _ = _play(url, streams, seconds)
    with stub("--interval", str(INTERVAL)) as url:
        _, _, gaps = _play(url, 32, seconds)
    off = np.abs(np.array(gaps) - INTERVAL) if gaps else np.zeros(1)
    return Ceiling(taken / seconds, taken / max(cpu, 1e-9), *map(float, np.percentile(off, (50, 99))))


def _play(url: str, streams: int, seconds: float) -> tuple[int, float, list[float]]:
    """Tokens taken, processor seconds, gaps between tokens."""
    job = Job(
        target=Target.of(url, {}), ask=Ask(model="stub"), load=Load(streams=streams, duration=seconds),
        source=Synthetic(tokens_in="32", tokens_out="100000"), seed=0, index=0, of=1, start=monotonic() + 1.0,
        last=seconds, until=seconds,
    )  # fmt: skip
    samples, progress = crew.run([job])
    taken = sum(sample.output_tokens or len(sample.chunks) for sample in samples)
    return taken, sum(progress.cpu), [gap for sample in samples for gap in sample.chunks]
