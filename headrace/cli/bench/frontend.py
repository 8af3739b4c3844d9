"""Measures the server without a model: an engine that answers from a script, many streams, one core."""

import os

from headrace.base.errors import Refused
from headrace.cli.bench._checks import at_least
from headrace.cli.bench._ending import unwound
from headrace.cli.bench._report import FileFlags, Files


def run(
    *,
    streams: int = 256,
    tokens: int = 400,
    rate: float = 15000,
    repeats: int = 3,
    files: FileFlags = Files(),
) -> None:
    """Measure the front process alone: streams of chat over HTTP on one core, with an engine that only pretends.

    Needs Linux, and a second core for the engine and the reader: with one, their time is part of what is measured.

    Parameters
    ----------
    streams
        requests at a time
    tokens
        tokens of each answer
    rate
        tokens per second that the engine gives to all streams together; 0: as many as it can
    repeats
        how often it is measured; the table shows medians
    """
    at_least(1, streams=streams, tokens=tokens, repeats=repeats)
    at_least(0, rate=rate)
    report = files.begin("frontend")
    if not hasattr(os, "sched_setaffinity"):
        raise Refused("processes cannot be kept on one core here", hint="run it on Linux")
    from headrace.bench.frontend import Work, measure

    with unwound():
        found = measure(Work(streams, tokens, rate), repeats)
    settings = {"streams": streams, "tokens": tokens, "rate": rate, "repeats": repeats}
    report.show(settings, found)
