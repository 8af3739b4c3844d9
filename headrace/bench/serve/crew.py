"""Client processes working together: started, listened to, and their samples collected."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import NamedTuple

import msgspec

from headrace.base.errors import Broken
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.worker import Job, Report

WORKER = (sys.executable, "-m", "headrace.bench.serve.worker")
PATIENCE = 20.0
"""Seconds after the end of a run until which a client process may be silent."""


class Progress(NamedTuple):
    """How far a run is: all client processes together.

    new     samples that came since the last time       cpu     processor seconds of each process
    """

    elapsed: float
    running: int
    streamed: int
    done: int
    new: list[Sample]
    cpu: list[float]


def run(
    jobs: list[Job], told: Callable[[Progress], None] = lambda progress: None
) -> tuple[list[Sample], Progress]:
    """Have a process for each job, tell how it goes a few times a second, and give all samples by when they were due.

    Raises Broken when a process dies. Interrupted, it ends the processes and lets the interrupt pass.
    """
    found: SimpleQueue[tuple[int, Report | None]] = SimpleQueue()
    crew = [_start(job, found) for job in jobs]
    latest: dict[int, Report] = {}
    samples: list[Sample] = []
    ended: set[int] = set()
    last = jobs[0].start + jobs[0].until + PATIENCE
    try:
        while len(ended) < len(jobs):
            new = _drain(found, latest, ended)
            samples += new
            told(_progress(jobs[0], latest, samples, new))
            if monotonic() > last:
                raise Broken("a client process does not end", hint="this is a bug in headrace")
    finally:
        for process in crew:
            process.kill()
            process.wait()
    samples.sort(key=lambda sample: sample.scheduled)
    return samples, _progress(jobs[0], latest, samples, [])


def _start(job: Job, found: "SimpleQueue[tuple[int, Report | None]]") -> "subprocess.Popen[bytes]":
    reports, out = Pipe(duplex=False)
    process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=out.fileno())
    out.close()
    assert process.stdin is not None
    process.stdin.write(msgspec.msgpack.encode(job))
    process.stdin.close()
    Thread(target=_listen, args=(job.index, reports, found), daemon=True).start()
    return process


def _listen(index: int, reports: Connection, found: "SimpleQueue[tuple[int, Report | None]]") -> None:
    decode = msgspec.msgpack.Decoder(Report).decode
    with reports, suppress(EOFError, OSError):  # at its end, or cut off in mid-report
        while True:
            found.put((index, decode(reports.recv_bytes())))
    found.put((index, None))


def _drain(
    found: "SimpleQueue[tuple[int, Report | None]]", latest: dict[int, Report], ended: set[int]
) -> list[Sample]:
    """Wait for a report and take all that are here."""
    new: list[Sample] = []
    wait = 0.25
    while True:
        try:
            index, report = found.get(timeout=wait)
        except Empty:
            return new
        wait = 0.001
        if report is None:
            if index not in ended:
                raise Broken("a client process died", hint="its last words are above")
            continue
        latest[index] = report
        new += report.samples
        report.samples = []
        if report.end:
            ended.add(index)


def _progress(job: Job, latest: dict[int, Report], samples: list[Sample], new: list[Sample]) -> Progress:
    return Progress(
        elapsed=monotonic() - job.start,
        running=sum(report.running for report in latest.values()),
        streamed=sum(report.streamed for report in latest.values()),
        done=len(samples),
        new=new,
        cpu=[latest[index].cpu for index in sorted(latest)],
    )
