"""Levels without a server."""

from random import Random
from typing import Any

from headrace.bench.serve.arrivals import Load
from headrace.bench.serve.campaign import Campaign, Level
from headrace.bench.serve.connection import Target
from headrace.bench.serve.data import Synthetic
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.scrape import Point


def campaign(**more: Any) -> Campaign:
    return Campaign(Target.of("http://127.0.0.1:9", {}), Ask(model="stub"), Synthetic(), **more)


def samples(
    count: int = 200, rate: float = 10.0, ttft: float = 0.1, tpot: float = 0.01, lag: float = 0.0
) -> list[Sample]:
    random, found = Random(1), []
    for n in range(count):
        due, wait = n / rate, ttft * random.uniform(0.8, 1.2)
        gaps = [tpot * random.uniform(0.9, 1.1) for _ in range(9)]
        first, last = due + wait, due + wait + sum(gaps)
        sample = Sample(due, due + lag, ended=last, opened=first, first=first, last=last, chunks=gaps)
        sample.prompt_tokens, sample.output_tokens, sample.counted = 20, 10, True
        sample.outcome, sample.status = "ok", 200
        found.append(sample)
    return found


def level(load: Load | None = None, found: list[Sample] | None = None, of: Campaign | None = None) -> Level:
    """A level as a campaign would judge it."""
    load = load or Load(rate=10.0, duration=20.0)
    points = [
        Point(5.0, {"running": 1.0, "waiting": 0.0, "kv_usage": 0.2, "lookups": 0, "hits": 0}),
        Point(15.0, {"running": 3.0, "waiting": 1.0, "kv_usage": 0.4, "lookups": 100, "hits": 25}),
    ]
    return (of or campaign())._judged(load, samples() if found is None else found, 4.0, points, [1.0])
