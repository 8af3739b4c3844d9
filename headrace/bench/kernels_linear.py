"""Linear-layer kernels on this GPU: checked against float32, timed against cuBLAS and the floor in bytes.

    python -m headrace.bench.kernels_linear --seconds 90 [--parts check,chain,shapes] [--models qwen3-0.6b]

`shapes` also tries a moderate set of configurations and prints the best as rows for kernels/configs.py.
Times are of CUDA-graph replays over weights rotated beyond the L2, in microseconds per call.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from headrace.bench import kernels_linear_check as checks
from headrace.bench import kernels_linear_tune as tuning
from headrace.bench.kernels_linear_tune import MODELS, TUNED_TOKENS, Layer, Model, replay_us
from headrace.kernels import configs
from headrace.kernels.configs import Gemv, Skinny
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.gpu.paged_decode import Workspace, decode
from headrace.kernels.gpu.rotate import rotate_store
from headrace.kernels.paged import Pages, Scores

SHOWN_TOKENS = (1, 2, 4, 8, 16, 32, 64)


def say(line: str = "") -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def compare(layer: Layer, tokens: int, config: Gemv | Skinny) -> tuple[float, ...]:
    """Microseconds of cuBLAS alone, of cuBLAS with what surrounds it, of our kernel doing all of it, and of
    ours overlapped."""
    weights, fusion = tuning.weights_of(layer), tuning.fusion_of(layer, tokens)
    x = torch.randn(tokens, layer.k, device="cuda", dtype=torch.bfloat16)
    calls, count = max(len(weights), 16), len(weights)

    def surrounded(i: int) -> Tensor:
        normed, _, rest = gpu.normed_first(x, fusion, False)
        return gpu.library(normed, weights[i % count], rest, None, False)

    def ours(i: int, pdl: bool = False) -> Tensor:
        if isinstance(config, Gemv):
            return gpu.gemv(x, weights[i % count], config, fusion, pdl=pdl)[0]
        return gpu.skinny(x, weights[i % count], config, fusion, pdl=pdl)[0]

    alone = replay_us(lambda i: functional.linear(x, weights[i % count]), calls)
    overlapped = replay_us(lambda i: ours(i, configs.pdl(x.device)), calls)
    return alone, replay_us(surrounded, calls), replay_us(ours, calls), overlapped


def shapes(model: Model, most: int, until: float) -> dict[tuple[Layer, int], Gemv | Skinny | None]:
    """Tune each layer for up to `most` tokens and print how it compares; returns the winners, None for cuBLAS."""
    found: dict[tuple[Layer, int], Gemv | Skinny | None] = {}
    least = max((t for t in TUNED_TOKENS if t < most), default=0)
    for layer in model.layers:
        result = tuning.tune(layer, most, until)
        if result is None:
            continue
        _, config = result
        for tokens in (t for t in SHOWN_TOKENS if least < t <= most):
            alone, around, ours, overlapped = compare(layer, tokens, config)
            say(
                f"{layer.name:9}{layer.n:>7}{layer.k:>7}{tokens:>4}{layer.floor_us:>8.1f}"
                f"{alone:>8.1f}{around:>8.1f}{ours:>8.1f}{overlapped:>8.1f}   {config}"
            )
            found[layer, most] = config if min(ours, overlapped) <= around else None
    return found


def all_shapes(names: list[str], until: float) -> dict[tuple[Layer, int], Gemv | Skinny | None]:
    """shapes() for all models, those of one token first."""
    found: dict[tuple[Layer, int], Gemv | Skinny | None] = {}
    tuning.compile_all(",".join(names), min(12, os.cpu_count() or 1))
    say("layer          N      K   M   floor  cuBLAS +around    ours +overlap  configuration")
    for most in TUNED_TOKENS:
        for name in names:
            found |= shapes(MODELS[name], most, until)
    say(f"\nrows for headrace/kernels/configs.py at {configs.capability(torch.device('cuda', 0))}")
    for (layer, most), config in found.items():
        where = f"{layer.n}, {layer.k}, {layer.gated}"
        say(f"    ({where}): {config}," if most == 1 else f"    ({most}, {where}): {config},")
    return found


class Chain:
    """Decoder layers with random weights and a paged cache, for `tokens` rows of one query each."""

    def __init__(self, model: Model, blocks: int, tokens: int, keys: int):
        self.model, self.tokens = model, tokens
        self.weights = [
            [torch.randn(y.n * (2 if y.gated else 1), y.k, device="cuda", dtype=torch.bfloat16) / y.k**0.5
             for y in model.layers[:4]] for _ in range(blocks)
        ]  # fmt: skip
        self.gain = torch.ones(max(y.k for y in model.layers), device="cuda", dtype=torch.bfloat16)
        pages = -(-keys // 16)
        shape = (blocks, tokens * pages + 1, 16, model.kv_heads, model.size)
        self.k, self.v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        table = torch.arange(1, tokens * pages + 1, device="cuda", dtype=torch.int32).view(tokens, pages)
        self.table, self.starts = table, torch.arange(tokens + 1, device="cuda", dtype=torch.int32)
        self.context = torch.full((tokens,), keys, device="cuda", dtype=torch.int32)
        self.positions = torch.full((tokens,), keys - 1, device="cuda", dtype=torch.int64)
        self.slots = (table[:, -1].long() * 16) + (keys - 1) % 16
        self.rope = torch.randn(keys, model.size, device="cuda")
        self.workspace = Workspace(torch.device("cuda"))
        self.x = torch.randn(tokens, model.layers[0].k, device="cuda", dtype=torch.bfloat16)

    def attend(self, qkv: Tensor, block: int, pdl: bool) -> Tensor:
        """Between the qkv projection and the output projection."""
        m = self.model
        q, k, v = qkv.view(self.tokens, -1, m.size).split([m.heads, m.kv_heads, m.kv_heads], 1)
        gain = self.gain[: m.size] if m.qk_norm else None
        q = rotate_store(q, k, v, self.positions, self.rope, gain, gain, 1e-6, 0.0,
                         self.k[block], self.v[block], self.slots, pdl)  # fmt: skip
        out = torch.empty_like(q)
        config = configs.paged_decode(configs.capability(q.device), m.size, self.tokens * m.kv_heads)
        pages = Pages(self.k[block], self.v[block], self.table, self.starts, self.context)
        programs = torch.cuda.get_device_properties(q.device).multi_processor_count * config.programs
        decode(q, pages, Scores(m.size**-0.5), out, self.workspace, config=config, programs=programs)
        return out.view(self.tokens, -1)

    def run(
        self, multiply: Callable[[Tensor, Tensor, gpu.Fusion], Tensor], pdl: bool, attention: bool = True
    ) -> Tensor:
        """The residual stream after all layers; x itself is not changed."""
        x, normed = self.x, gpu.Fusion(gain=self.gain[: self.x.shape[1]], eps=1e-6)
        for block, (qkv_w, o_w, gate_up, down) in enumerate(self.weights):
            qkv = multiply(x, qkv_w, normed)
            mixed = self.attend(qkv, block, pdl) if attention else qkv[:, : o_w.shape[1]]
            x = multiply(mixed, o_w, gpu.Fusion(after=x))
            inner = multiply(x, gate_up, gpu.Fusion(gain=normed.gain, eps=1e-6, gated=True))
            x = multiply(inner, down, gpu.Fusion(after=x))
        return x


def by_gemv(
    found: dict[tuple[int, int, bool], Gemv], pdl: bool
) -> Callable[[Tensor, Tensor, gpu.Fusion], Tensor]:
    """Everything fused, one token, with the configurations found or else those of the tables."""

    def multiply(x: Tensor, weight: Tensor, fusion: gpu.Fusion) -> Tensor:
        key = fusion.outputs(weight), weight.shape[1], fusion.gated
        config = found.get(key) or configs.gemv(configs.capability(x.device), *key)
        return gpu.gemv(x, weight, config, fusion, pdl=pdl)[0]

    return multiply


def by_product(x: Tensor, weight: Tensor, fusion: gpu.Fusion) -> Tensor:
    """What the tables choose."""
    return gpu.product(x, weight, fusion)[0]


def by_library(x: Tensor, weight: Tensor, fusion: gpu.Fusion) -> Tensor:
    """cuBLAS, with norms and activations as launches of their own."""
    normed, _, rest = gpu.normed_first(x, fusion, False)
    return gpu.library(normed, weight, rest, None, False)


def variants_of(chain: Chain, found: dict[tuple[int, int, bool], Gemv]) -> dict[str, Callable[[], Tensor]]:
    """Ways to run the same layers."""
    plain, overlapped = by_gemv(found, False), by_gemv(found, configs.pdl(chain.x.device))
    ways: dict[str, Callable[[], Tensor]] = {
        "by the tables": lambda: chain.run(by_product, configs.pdl(chain.x.device)),
        "cuBLAS and separate launches": lambda: chain.run(by_library, False),
    }
    if chain.tokens > 1:
        return ways
    return {
        "fused, overlapped": lambda: chain.run(overlapped, configs.pdl(chain.x.device)),
        "fused, only attention overlapped": lambda: chain.run(plain, False),
        "products alone, overlapped": lambda: chain.run(overlapped, True, attention=False),
        "products alone": lambda: chain.run(plain, False, attention=False),
        **ways,
    }


def chains(name: str, found: dict[tuple[int, int, bool], Gemv], until: float) -> None:
    """Print microseconds per decoder layer under one graph of all layers (6 of a large model)."""
    model = MODELS[name]
    blocks = model.blocks if model.hidden <= 1024 else 6
    floor = sum(y.floor_us for y in model.layers[:4])
    say(f"\n{name}: {blocks} decoder layers in one graph, 200 keys per row, floor {floor:.2f} us per layer")
    for tokens in (1, 8, 32):
        if time.monotonic() > until:
            return
        ways = variants_of(Chain(model, blocks, tokens, 200), found)
        for way, call in ways.items():
            us = replay_us(lambda _, c=call: c(), 1, target_ms=20.0) / blocks
            say(
                f"M={tokens:<3} {way:34}{us:8.2f} us, {us * model.blocks / 1000:.3f} ms for {model.blocks} layers"
            )
        if tokens == 1:
            first, second = (ways[way]() for way in ("fused, overlapped", "fused, only attention overlapped"))
            say(f"      overlapped equals plain: {torch.equal(first, second)}")


def main() -> None:
    """Run the parts asked for, within the time given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="start no new measurement after this")
    parser.add_argument("--parts", default="check,shapes,chain", help="which of check, shapes and chain")
    parser.add_argument("--models", default=",".join(MODELS), help="which of " + ", ".join(MODELS))
    parser.add_argument("--share", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    parts, names = options.parts.split(","), options.models.split(",")
    if options.share:
        tuning.compile_share([MODELS[name] for name in names], *map(int, options.share.split("/")))
        return
    failures = checks.run_all(say, until) if "check" in parts else 0
    with torch.inference_mode():
        reserve = 20.0 if "chain" in parts else 0.0
        best = all_shapes(names, until - reserve) if "shapes" in parts else {}
        found = {(y.n, y.k, y.gated): c for (y, _), c in best.items() if isinstance(c, Gemv)}
        for name in names if "chain" in parts else ():
            chains(name, found, until)
    say(f"\n{failures} checks failed" if "check" in parts else "\nnot checked")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
