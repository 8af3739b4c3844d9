"""One client process: reads its job from standard input, plays its share, writes samples to standard output."""

import asyncio
import gc
import sys
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from time import process_time

import msgspec

from headrace.base.loop import runner
from headrace.bench.serve.arrivals import Load, times
from headrace.bench.serve.client import Client, Conversation
from headrace.bench.serve.connection import Target
from headrace.bench.serve.data import Prompts, Source, conversations, replayed
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.sample import Sample

TELL = 0.25
"""Seconds between two reports."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The share of worker number `index` of `of`.

    start       monotonic moment at which the run begins
    last        seconds after which no conversation begins in a closed loop
    until       seconds after which whatever still runs is given up
    """

    target: Target
    ask: Ask
    load: Load
    source: Source
    seed: int
    index: int
    of: int
    start: float
    last: float
    until: float
    timeout: float = 600.0
    cancel: float = 0.0


class Report(msgspec.Struct, array_like=True):
    """What a worker says now and then. `cpu`: seconds of processor time so far; `end`: the last one."""

    samples: list[Sample]
    running: int
    streamed: int
    cpu: float
    end: bool = False


def share(job: Job) -> list[tuple[float, Conversation]]:
    """The conversations of this worker's part of an open loop, with when they are due."""
    if job.load.replay and isinstance(job.source, Prompts):
        return replayed(job.source, job.load, job.seed)[job.index :: job.of]
    due = times(job.load, job.seed)[job.index :: job.of]
    return list(zip(due, islice(conversations(job.source, job.seed), job.index, None, job.of), strict=False))


async def play(job: Job, out: Connection) -> None:
    """Do the job, reporting as it goes."""
    done: list[Sample] = []
    client = Client(
        job.target, job.ask, done.append, start=job.start, timeout=job.timeout, cancel=job.cancel,
        seed=job.seed * job.of + job.index,
    )  # fmt: skip

    def tell(end: bool = False) -> None:
        report = Report(done.copy(), client.running, client.streamed, process_time(), end)
        done.clear()
        out.send_bytes(msgspec.msgpack.encode(report))

    async def keep_telling() -> None:
        while True:
            await asyncio.sleep(TELL)
            tell()

    telling = asyncio.create_task(keep_telling())
    if job.load.streams is not None:
        mine = islice(conversations(job.source, job.seed), job.index, None, job.of)
        if job.load.requests is not None:
            mine = islice(mine, len(range(job.index, job.load.requests, job.of)))
        streams = len(range(job.index, job.load.streams, job.of))
        await client.closed_loop(mine, streams, job.last, job.until)
    else:
        await client.open_loop(share(job), job.until)
    telling.cancel()
    tell(end=True)


def main() -> None:
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    gc.freeze()
    gc.set_threshold(200_000, 100, 100)  # a pause of ours would be taken for the server's
    # the pipe breaks when whoever wanted to know has left
    with suppress(BrokenPipeError), runner() as loop:
        loop.run(play(job, Connection(sys.stdout.fileno(), readable=False)))


if __name__ == "__main__":
    main()
