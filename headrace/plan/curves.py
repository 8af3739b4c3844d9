"""Throughput against latency: one line per configuration, one point per number of requests at once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from headrace.plan.forecast import Forecast
from headrace.plan.options import Option, splits
from headrace.plan.scheme import SCHEMES

STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MOST = 6
"""Lines of one picture: more cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A configuration's points: (requests at once, what is expected of them)."""

    name: str
    option: Option
    points: tuple[tuple[int, Forecast], ...]


def curves(option: Option) -> list[Curve]:
    """The option itself first, then narrower weights and more devices, each where something fits."""
    found = [curve for tried in _options(option) if (curve := _curve(tried)).points]
    return found[:MOST]


def _options(option: Option) -> Iterator[Option]:
    yield option
    narrow = [
        name
        for name in ("fp8", "w4a16")
        if SCHEMES[name].bits < SCHEMES[option.scheme].bits and (name != "fp8" or option.gpu.fp8)
    ]
    for name in narrow:
        yield replace(option, scheme=name)
    if narrow and option.anatomy.windows and option.setup.kv_bits > 8:
        yield replace(option, scheme=narrow[0], kv="fp8")
    for gpus in (2 * option.gpus, 4 * option.gpus):
        if option.gpu.kind == "gpu" and gpus <= 16 and splits(option.anatomy, gpus):
            yield replace(option, gpus=gpus)


def _curve(option: Option) -> Curve:
    points: list[tuple[int, Forecast]] = []
    steps = sorted({*STEPS, option.work.concurrency})
    for count in steps:
        made = replace(option, work=option.work._replace(concurrency=count)).forecast
        if made is None or made.rows < count:
            break  # from here on requests wait for each other: more of them make nothing faster
        points.append((count, made))
    return Curve(option.name, option, tuple(points))
