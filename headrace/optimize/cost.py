"""What a run is expected to take: seconds, memory, disk. From arithmetic, and how fast this machine multiplies now."""

from dataclasses import dataclass
from time import perf_counter

import torch

from headrace.nn.decoder import Block, Decoder
from headrace.optimize.inputs import SAMPLE
from headrace.optimize.job import Job, blocks_of, schemes_of
from headrace.optimize.passes import Rounding
from headrace.optimize.passes.gptq import AT_ONCE
from headrace.optimize.watch import linears
from headrace.quant.scheme import packed_bytes

FLOAT = 4
PROGRAM = 330_000_000
"""Bytes that Python, torch and its buffers take."""
WORKING = 120_000_000
"""Bytes for pieces of weights while they are rounded."""
TRIES = 1.2e-8
"""Seconds to look at one number of a weight with one scale, on a core."""
COLUMN = 8e-5
"""Seconds that a column costs besides its arithmetic, where columns are rounded one by one."""
COPIED = 3e8
"""Bytes read, converted and written per second."""
PROBE = 1024


def rate(device: torch.device) -> float:
    """Floating-point operations per second of a product like those of calibration."""
    a = torch.ones(PROBE // 2, PROBE, device=device)
    b = torch.ones(PROBE, PROBE, device=device)
    best = float("inf")
    for _ in range(4):
        start = perf_counter()
        float((a @ b)[0, 0])
        best = min(best, perf_counter() - start)
    return PROBE**3 / best


@dataclass(frozen=True)
class Step:
    """Seconds that the work on a block takes: to watch and to round each of its layers (by place), and for all."""

    watch: tuple[float, ...]
    round: tuple[float, ...]
    change: float
    run: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.watch) + sum(self.round) + self.change + self.run


@dataclass(frozen=True)
class Cost:
    """seconds, of each block and of all; bytes of memory at the peak, and of disk until the end."""

    blocks: tuple[Step, ...]
    seconds: float
    memory: int
    disk: int


def staged(job: Job, model: Decoder, block: Block) -> list[list[int]]:
    """Which layers of a block (by place) are watched together.

    Where a Hessian is wanted, one after the other: each sees what those before it, already rounded, give, and only
    one Hessian is in memory. Otherwise all at once.
    """
    names = {layer: own for own, layer in model.linears()}
    layers = linears(block)
    wanted = [i for i, layer in enumerate(layers) if schemes_of(job.plan, names[layer])]
    if any("hessian" in rounding_of(job, names[layers[i]]).needs for i in wanted):
        return [[i] for i in wanted]
    return [wanted] if wanted else []


def cost(job: Job, model: Decoder, after: int) -> Cost:
    """`after`: bytes of the result."""
    speed = rate(job.device)
    blocks = blocks_of(model)
    steps = tuple(_step(job, model, block, speed) for block in blocks)
    table = model.shape.vocab * model.shape.hidden
    tokens = 0 if job.ids_ST is None else job.ids_ST.numel()
    return Cost(
        steps,
        sum(step.seconds for step in steps) + (table * 2 + after) / COPIED,
        _memory(job, blocks[0]),
        int(after * 2.1) + 2 * tokens * model.shape.hidden * FLOAT,
    )


def _step(job: Job, model: Decoder, block: Block, speed: float) -> Step:
    tokens = 0 if job.ids_ST is None else job.ids_ST.numel()
    layers = linears(block)
    names = {layer: own for own, layer in model.linears()}
    cores = max(1, torch.get_num_threads())
    sizes = [float(layer.inputs * sum(layer.outputs)) for layer in layers]
    attention = 4.0 * tokens * job.recipe.calibration.tokens * layers[1].inputs
    run = (2 * tokens * sum(sizes) + attention) / speed
    watch, rounding = [0.0] * len(layers), [0.0] * len(layers)
    for stage in staged(job, model, block):
        last = stage[-1]
        watch[last] += (2 * tokens * sum(sizes[:last]) + (attention if last else 0.0)) / speed
        for i in stage:
            columns, way = float(layers[i].inputs), rounding_of(job, names[layers[i]])
            rounding[i] = sizes[i] * getattr(way, "steps", 2) * TRIES / cores
            if "hessian" in way.needs:
                watch[i] += 2 * tokens * columns**2 / speed
                rounding[i] += (columns**3 / 3 + sizes[i] * columns) / speed
                rounding[i] += columns * COLUMN * max(1.0, sizes[i] / AT_ONCE)
    once = run + 20 * sum(sizes) * (2 * SAMPLE / speed + TRIES / cores)
    return Step(tuple(watch), tuple(rounding), once * len(job.recipe.changes), run)


def rounding_of(job: Job, names: list[str]) -> Rounding:
    """What rounds a layer, by the names of its projections."""
    return next(job.plan[name].rounding for name in names if job.plan[name].scheme is not None)


def _memory(job: Job, block: Block) -> int:
    layers = linears(block)
    weights = sum(parameter.numel() for parameter in block.parameters()) * FLOAT
    needs = any("hessian" in assigned.rounding.needs for assigned in job.plan.values())
    hessian = max(layer.inputs for layer in layers) ** 2 * FLOAT if needs and job.ids_ST is not None else 0
    tokens = job.recipe.calibration.tokens
    widest = max(sum(layer.outputs) for layer in layers)
    return PROGRAM + weights + hessian + max(WORKING, 3 * tokens * widest * FLOAT)


def size_after(job: Job, name: str, rows: int, columns: int) -> int:
    """Bytes of a projection as it will be written."""
    scheme = job.plan[name].scheme
    if scheme is None:
        return rows * columns * job.dtype.itemsize
    return packed_bytes(scheme, rows, columns, job.dtype)
