"""Rows of every kind over random pages, and how launches over them are timed."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from headrace.kernels.paged import Pages

ROTATED_BYTES = 320e6  # over five times the L2 of an H200
LAUNCHES = (20, 256)  # per graph: at least, so that starting it does not count; at most
BLOCK = 16


@dataclass(frozen=True, slots=True)
class Work:
    """Rows as (queries, keys) and what they are called in the table."""

    name: str
    rows: tuple[tuple[int, int], ...]

    def bytes(self, shape: tuple[int, int, int]) -> int:
        """What must be read and written in 16 bits: keys and values once, queries and output once."""
        heads, kv_heads, size = shape
        return sum(4 * keys * kv_heads * size + 4 * queries * heads * size for queries, keys in self.rows)

    def means(self) -> tuple[int, int]:
        """Queries and keys of a row, on average."""
        queries, keys = (sum(n) // len(self.rows) for n in zip(*self.rows, strict=True))
        return queries, keys

    def operations(self, shape: tuple[int, int, int]) -> int:
        """Floating-point operations of the two products, over the scores that causality leaves."""
        pairs = sum(q * n - q * (q - 1) // 2 for q, n in self.rows)
        return 4 * pairs * shape[0] * shape[2]


def alike(batch: int, keys: int, queries: int = 1) -> Work:
    """`batch` equal rows."""
    name = f"{batch} x {keys}" if queries == 1 else f"{batch} x {queries} of {keys}"
    return Work(name, ((queries, keys),) * batch)


def ragged(batch: int, least: int, most: int) -> Work:
    """Rows of evenly drawn lengths."""
    keys = np.random.default_rng(0).integers(least, most, batch).tolist()
    return Work(f"{batch} x {least}-{most}", tuple((1, n) for n in keys))


DECODES = [
    alike(1, 140), alike(1, 300), alike(1, 700), alike(1, 2048), alike(1, 16384), alike(1, 131072), alike(4, 500),
    alike(8, 2048), Work("7 x 300, 1 x 32768", ((1, 300),) * 7 + ((1, 32768),)), alike(32, 384),
    ragged(32, 100, 2048), alike(256, 192), ragged(256, 100, 2048), alike(512, 1024),
    Work("255 x 300, 1 x 32768", ((1, 300),) * 255 + ((1, 32768),)),
]  # fmt: skip
PREFILLS = [
    alike(4, 4096, 4096), alike(4, 2048, 2048), alike(1, 8192, 8192), alike(16, 512, 512), alike(64, 128, 128),
    alike(1, 32768, 2048), alike(32, 1024, 8),
]  # fmt: skip


def say(text: str) -> None:
    """A line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def pages_of(work: Work, shape: tuple[int, int, int], sets: int) -> list[Pages]:
    """`sets` times the same rows over different blocks, in random order, of one cache of random numbers."""
    _, kv_heads, size = shape
    counts = [-(-keys // BLOCK) for _, keys in work.rows]
    blocks = sum(counts) * sets
    k, v = (torch.empty(blocks + 1, BLOCK, kv_heads, size, dtype=torch.bfloat16, device="cuda") for _ in "kv")
    for cache in (k, v):
        cache.normal_()
    order = torch.from_numpy(np.random.default_rng(0).permutation(blocks).astype(np.int32) + 1)
    starts = np.cumsum([0] + [queries for queries, _ in work.rows]).astype(np.int32)
    context = torch.tensor([keys for _, keys in work.rows], dtype=torch.int32)
    made = []
    for part in order.split(sum(counts)):
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, own in enumerate(part.split(counts)):
            table[row, : len(own)] = own
        made.append(Pages(k, v, table.cuda(), torch.from_numpy(starts).cuda(), context.cuda()))
    return made


def sets_of(work: Work, shape: tuple[int, int, int]) -> int:
    """How many different sets of pages leave nothing useful in the L2."""
    return int(min(LAUNCHES[1], max(2, ROTATED_BYTES // work.bytes(shape) + 1)))


def replay_us(launches: list[Callable[[], object]], repeats: int = 7) -> float:
    """Microseconds per launch in a graph of all launches, the median of some replays."""
    launches = launches * -(-LAUNCHES[0] // len(launches))
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    times = []
    for _ in range(repeats):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / len(launches))
    return statistics.median(times)
