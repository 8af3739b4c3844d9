"""Which configuration of the linear-layer kernels is fastest for a layer: candidates, timing and choice."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.configs import Gemv, Skinny
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.launch import power_of_two

WEIGHT_BANDWIDTH = 4.57e12  # bytes/s of weights streamed once on an H200, measured
ROTATED_BYTES = 320e6  # over five times the L2 of an H200
TUNED_TOKENS = (1, 16, 32, 64)

C = TypeVar("C", Gemv, Skinny)


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

    @property
    def floor_us(self) -> float:
        """Microseconds in which the weight alone can be read."""
        return self.bytes / WEIGHT_BANDWIDTH * 1e6


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
    return [
        torch.randn(rows, layer.k, device="cuda", dtype=torch.bfloat16) / layer.k**0.5 for _ in range(copies)
    ]


def fusion_of(layer: Layer, tokens: int) -> gpu.Fusion:
    """The layer's own fusion; its norm only where one token makes it worth recomputing."""
    draw = torch.randn(tokens, layer.n, device="cuda", dtype=torch.bfloat16)
    gain = torch.randn(layer.k, device="cuda", dtype=torch.bfloat16) if layer.norm and tokens == 1 else None
    return gpu.Fusion(gain=gain, eps=1e-6, after=draw if layer.after else None, gated=layer.gated)


def gemv_candidates(layer: Layer) -> Iterator[Gemv]:
    """Tiles of 16 to 64 weights per thread, whole rows at once or in chunks."""
    halves, whole = 2 if layer.gated else 1, power_of_two(layer.k)
    for chunk in sorted({whole, min(2048, whole), 1024 if layer.k <= 3072 else whole}):
        for warps in (4, 8) if chunk < 4096 else (4, 8, 16):
            for each in (16, 32, 64):
                rows = each * 32 * warps // chunk // halves
                if 1 <= rows <= 16 and layer.n // rows >= 200:
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
            if layer.k // split >= 2 * k and (100 <= programs <= 800 or (split == 1 and programs > 800)):
                yield Skinny(n, k, split, 4, stages)


def best(call: Callable[[C], float], options: Iterator[C], until: float) -> tuple[float, C] | None:
    """The fastest option among those tried in time."""
    tried: list[tuple[float, C]] = []
    for option in options:
        if time.monotonic() > until:
            break
        tried.append((call(option), option))
    return min(tried, key=lambda pair: pair[0]) if tried else None


def tune(layer: Layer, tokens: int, until: float) -> tuple[float, Gemv | Skinny] | None:
    """The fastest configuration of our kernel for this layer and number of tokens, with its microseconds.

    Launches overlap as they do in use, where the device allows it.
    """
    weights, fusion = weights_of(layer), fusion_of(layer, tokens)
    x = torch.randn(tokens, layer.k, device="cuda", dtype=torch.bfloat16)
    count, pdl = len(weights), configs.pdl(x.device)

    def gemv(config: Gemv) -> float:
        return replay_us(lambda i: gpu.gemv(x, weights[i % count], config, fusion, pdl=pdl), max(count, 16))

    def skinny(config: Skinny) -> float:
        return replay_us(lambda i: gpu.skinny(x, weights[i % count], config, fusion, pdl=pdl), max(count, 16))

    if tokens == 1:
        return best(gemv, gemv_candidates(layer), until)
    return best(skinny, skinny_candidates(layer, tokens), until)


def compile_share(models: list[Model], share: int, shares: int) -> None:
    """Compile every shares-th candidate into Triton's cache by one launch on few outputs."""
    todo = 0
    for layer in (y for model in models for y in model.layers):
        small = replace(layer, n=256)
        for tokens in TUNED_TOKENS:
            weight, fusion = weights_of(small)[0], fusion_of(small, tokens)
            x = torch.randn(tokens, layer.k, device="cuda", dtype=torch.bfloat16)
            options = gemv_candidates(layer) if tokens == 1 else skinny_candidates(layer, tokens)
            for option in options:
                todo += 1
                if todo % shares != share:
                    continue
                for pdl in {False, configs.pdl(x.device)}:
                    if isinstance(option, Gemv):
                        gpu.gemv(x, weight, option, fusion, pdl=pdl)
                    else:
                        gpu.skinny(x, weight, option, fusion, pdl=pdl)
    torch.cuda.synchronize()


def compile_all(names: str, processes: int) -> None:
    """Fill Triton's cache from several processes: compiling, not measuring, is what tuning spends its time on."""
    command = [sys.executable, "-m", "headrace.bench.kernels_linear", "--parts", "compile", "--models", names]
    running = [subprocess.Popen([*command, "--share", f"{i}/{processes}"]) for i in range(processes)]
    for process in running:
        process.wait()
