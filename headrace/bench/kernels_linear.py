"""Linear-layer kernels on this GPU: checked against float32, timed against cuBLAS and the floor in bytes.

    python -m headrace.bench.kernels_linear --seconds 90 [--parts check,chain,shapes] [--models qwen3-0.6b]

`shapes` also tries a moderate set of configurations and prints the best as rows for headrace/kernels/configs.py.
Times are of CUDA-graph replays over weights rotated beyond the L2, in microseconds per call.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.bench import kernels_linear_check as checks
from headrace.kernels import configs
from headrace.kernels.configs import Gemv, Skinny
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.gpu.norm import normalize
from headrace.kernels.gpu.rotate import rotate_store
from headrace.kernels.launch import power_of_two

WEIGHT_BANDWIDTH = 4.57e12  # bytes/s of weights streamed once on an H200, measured
ROTATED_BYTES = 320e6  # over five times the L2 of an H200
TUNED_TOKENS = (1, 16, 32, 64)
SHOWN_TOKENS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer of a model: N outputs (per half if gated), K inputs and what is fused with it."""

    name: str
    n: int
    k: int
    gated: bool = False
    norm: bool = False
    after: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of the weight in 16 bits."""
        return self.n * self.k * (4 if self.gated else 2)


@dataclass(frozen=True, slots=True)
class Model:
    """What the chain of one decoder layer needs to know."""

    blocks: int
    hidden: int
    heads: int
    kv_heads: int
    size: int
    qk_norm: bool
    layers: tuple[Layer, ...]


MODELS = {
    "qwen3-0.6b": Model(28, 1024, 16, 8, 128, True, (
        Layer("qkv", 4096, 1024, norm=True), Layer("o", 1024, 2048, after=True),
        Layer("gate_up", 3072, 1024, gated=True, norm=True), Layer("down", 1024, 3072, after=True),
        Layer("head", 151936, 1024, norm=True))),
    "llama-3.1-8b": Model(32, 4096, 32, 8, 128, False, (
        Layer("qkv", 6144, 4096, norm=True), Layer("o", 4096, 4096, after=True),
        Layer("gate_up", 14336, 4096, gated=True, norm=True), Layer("down", 4096, 14336, after=True),
        Layer("head", 128256, 4096, norm=True))),
}  # fmt: skip


def say(line: str = "") -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def replay_us(call: Callable[[int], object], calls: int, target_ms: float = 6.0) -> float:
    """Median microseconds per call of a graph of call(0), call(1), ..., call(calls - 1)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(0)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(calls):
            call(i)
    samples: list[float] = []
    replays = 1
    for sample in range(6):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        elapsed = start.elapsed_time(end)
        if sample:
            samples.append(elapsed * 1000 / replays / calls)
        else:
            replays = max(1, min(200, int(target_ms / max(elapsed, 1e-3))))
    return statistics.median(samples)


def weights_of(layer: Layer) -> list[Tensor]:
    """Copies enough that one is out of the L2 before its turn comes again."""
    copies = max(2, min(96, -(-int(ROTATED_BYTES) // layer.bytes)))
    rows = layer.n * (2 if layer.gated else 1)
    return [torch.randn(rows, layer.k, device="cuda", dtype=torch.bfloat16) / layer.k**0.5 for _ in range(copies)]


def fusion_of(layer: Layer, tokens: int) -> gpu.Fusion:
    """The layer's own fusion; its norm only where one token makes it worth recomputing."""
    draw = torch.randn(tokens, layer.n, device="cuda", dtype=torch.bfloat16)
    gain = torch.randn(layer.k, device="cuda", dtype=torch.bfloat16) if layer.norm and tokens == 1 else None
    return gpu.Fusion(gain=gain, eps=1e-6, after=draw if layer.after else None, gated=layer.gated)


def gemv_candidates(layer: Layer) -> Iterator[Gemv]:
    """Tiles of 16 to 64 weights per thread, whole rows at once or in chunks."""
    halves = 2 if layer.gated else 1
    for chunk in {power_of_two(layer.k), 1024, 2048, 4096}:
        if chunk > power_of_two(layer.k) or layer.k > 14 * chunk:
            continue
        for warps in (4, 8, 16):
            for each in (16, 32, 64):
                rows = each * 32 * warps // chunk // halves
                if rows >= 1 and 32 * warps * 8 <= chunk * rows * halves and layer.n // rows >= 200 and rows <= 16:
                    yield Gemv(rows, chunk, warps)


def skinny_candidates(layer: Layer, tokens: int) -> Iterator[Skinny]:
    """Tiles and splits that give the chip between one program per multiprocessor and a few waves of them."""
    rows = layer.n * (2 if layer.gated else 1)
    shapes = [(16, 256, 4), (32, 128, 5), (32, 256, 4), (64, 128, 4)]
    if tokens > 32:
        shapes = [(32, 128, 4), (64, 128, 3), (64, 64, 5), (128, 64, 4)]
    for n, k, stages in shapes:
        for split in (1, 2, 4, 8):
            programs = -(-rows // n) * split
            if layer.k // split >= 2 * k and (100 <= programs <= 800 or split == 1 and programs > 800):
                yield Skinny(n, k, split, 4, stages)


def best[C: (Gemv, Skinny)](call: Callable[[C], float], options: Iterator[C], until: float) -> tuple[float, C] | None:
    """The fastest option among those tried in time."""
    tried: list[tuple[float, C]] = []
    for option in options:
        if time.monotonic() > until:
            break
        tried.append((call(option), option))
    return min(tried, key=lambda pair: pair[0]) if tried else None
