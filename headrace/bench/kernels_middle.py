"""Products of tens to thousands of tokens and sampling on this GPU: checked, then timed against cuBLAS and floors.

    python -m headrace.bench.kernels_middle --seconds 90 [--parts check,sample,shapes] [--models llama-3.1-8b]

`shapes` prints rows for configs.MIDDLE, None where cuBLAS wins. Microseconds per call of CUDA-graph replays, weights
rotated beyond the L2: lib is the library with all that surrounds it, lin the product alone, lt the same as lib by
cuBLASLt, flip weight @ x.T alone, flip+ made contiguous (and gated), ours the best configuration with everything.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace

import torch
from torch import Tensor
from torch.nn import functional

from headrace.bench.kernels_linear_check import definition, error
from headrace.bench.kernels_linear_tune import MODELS, Layer, replay_us, weights_of
from headrace.kernels import configs, sample
from headrace.kernels.configs import Wide
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.gpu import sample as draws
from headrace.kernels.gpu.activation import gated
from headrace.kernels.gpu.product import multiply, split_counters

TOKENS = (256, 128, 512, 64)
LONG = 8192
TILES = (
    Wide(128, 256, 64, 8, 4), Wide(256, 128, 64, 8, 4), Wide(128, 128, 64, 8, 3, 2), Wide(128, 128, 128, 8, 3),
    Wide(64, 256, 64, 4, 4), Wide(64, 128, 64, 4, 4, 2), Wide(64, 128, 128, 4, 4),
)  # fmt: skip
ARITHMETIC = 760e12  # 16-bit operations per second that large products reach on an H200, measured
BANDWIDTH = 4.24e12  # bytes per second, read and written


def say(line: str = "") -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def candidates(tokens: int, n: int, steps_of: int, gated_: bool, processors: int) -> Iterator[Wide]:
    """Tiles no taller than the tokens ask for, each also cut where its last wave leaves processors idle."""
    for tile in TILES:
        if tile.m > max(64, 1 << (tokens - 1).bit_length()) or (
            tokens >= 2048 and tile.m * tile.n < 128 * 256
        ):
            continue
        yield tile
        width = tile.n // 2 if gated_ else tile.n
        tiles, programs = -(-tokens // tile.m) * -(-n // width), processors * tile.programs
        if tiles % programs and tiles < 6 * programs and steps_of >= 8 * tile.k:
            yield replace(tile, stream=True)


def kind_of(layer: Layer) -> tuple[gpu.Fusion, torch.dtype | None]:
    """What the engine asks of this layer: norm and residual are launches of their own, the head's sums float32."""
    return gpu.Fusion(gated=layer.gated), torch.float32 if layer.name == "head" else None


def floor_us(layer: Layer, tokens: int) -> float:
    """Microseconds by bytes or by arithmetic, whichever is more."""
    wide = 4 if layer.name == "head" else 2
    moved = layer.bytes + tokens * (layer.k * 2 + layer.n * wide)
    return max(layer.bytes * tokens / ARITHMETIC, moved / BANDWIDTH) * 1e6


def library_us(layer: Layer, tokens: int, x: Tensor, weights: list[Tensor]) -> dict[str, float]:
    """The library's ways."""
    fusion, dtype = kind_of(layer)
    count, pdl = len(weights), configs.pdl(x.device)

    def time_of(call: Callable[[int], Tensor]) -> float:
        return replay_us(call, count, 2.0)

    def flipped(i: int) -> Tensor:
        out = torch.mm(weights[i % count], x.t()).t().contiguous()
        return gated(out, "silu", pdl) if layer.gated else out if dtype is None else out.to(dtype)

    found = {
        "lib": time_of(lambda i: gpu.library(x, weights[i % count], fusion, dtype, pdl)),
        "lin": time_of(lambda i: functional.linear(x, weights[i % count])),
    }
    if tokens <= 512:
        torch.backends.cuda.preferred_blas_library("cublaslt")
        found["lt"] = time_of(lambda i: gpu.library(x, weights[i % count], fusion, dtype, pdl))
        torch.backends.cuda.preferred_blas_library("default")
        found["flip"] = time_of(lambda i: torch.mm(weights[i % count], x.t()))
        found["flip+"] = time_of(flipped)
    return found


def shape(layer: Layer, tokens: int, weights: list[Tensor]) -> tuple[float, float, Wide]:
    """Time all ways for one layer; (the library's microseconds, ours, our configuration)."""
    fusion, dtype = kind_of(layer)
    x = torch.randn(tokens, layer.k, device="cuda", dtype=torch.bfloat16)
    pdl, count = configs.pdl(x.device), len(weights)
    found = library_us(layer, tokens, x, weights)
    tried: list[tuple[float, Wide]] = []
    for config in candidates(tokens, layer.n, layer.k, layer.gated, configs.multiprocessors(x.device)):
        call = lambda i, c=config: multiply(x, weights[i % count], c, fusion, dtype, pdl)  # noqa: E731
        tried.append((replay_us(call, count, 2.0), config))
    ours, best = min(tried, key=lambda pair: pair[0])
    text = " ".join(f"{us:.1f}" for us in found.values())
    say(f"{layer.name} {tokens} | {floor_us(layer, tokens):.1f} | {text} | {ours:.1f} {brief(best)}")
    return found["lib"], ours, best


def brief(config: Wide) -> str:
    """A configuration in few letters."""
    c = config
    return f"{c.m}x{c.n}x{c.k} w{c.warps} s{c.stages} p{c.programs}{' stream' if c.stream else ''}"


def shapes(names: list[str], until: float) -> None:
    """All layers of these models, the most wanted numbers of tokens first; then rows to paste."""
    rows: list[str] = []
    say("layer M | floor | lib lin lt flip flip+ | ours configuration")
    for tokens in (TOKENS[0], LONG, *TOKENS[1:]):
        for name in names:
            model, saved = MODELS[name], 0.0
            for layer in model.layers:
                if time.monotonic() > until:
                    say("out of time")
                    break
                if tokens == LONG and layer.name == "head":
                    continue
                weights = weights_of(layer)
                weights = weights[: 3 if tokens == LONG else 32]
                library, ours, config = shape(layer, tokens, weights)
                won = ours < library * 0.98
                saved += (library - ours) * won * (1 if layer.name == "head" else model.blocks)
                most = tokens if tokens < LONG else "1 << 30"
                value = f"Wide({', '.join(map(str, astuple(config)))})" if won else None
                rows.append(f"({most}, {layer.n}, {layer.k}, {layer.gated}): {value},")
            say(f"-- {name} M={tokens}: ours where it wins saves {saved / 1000:.2f} ms per step")
    say("rows for configs.MIDDLE at " + str(configs.capability(torch.device("cuda", 0))))
    for row in sorted(rows):
        say(row)


# -- sampling


def settings_of(rows: int, **cuts: float) -> sample.Settings:
    """The same settings for all rows, temperature 0.8."""

    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device="cuda")

    return sample.Settings(
        column(1.25, torch.float32), column(float("inf"), torch.float32), column(cuts.get("top_k", 0), torch.int64),
        column(cuts.get("top_p", 1.0), torch.float32), torch.arange(rows, device="cuda"),
        torch.arange(rows, device="cuda") * 7,
    )  # fmt: skip


def drawing(rows: int, vocab: int, spans: tuple[int, ...] = (), copies: int = 16) -> dict[str, float]:
    """Microseconds of every way to draw, or of the race with these spans, over rotated random logits."""
    count = max(2, min(copies, 320_000_000 // (rows * vocab * 4)))
    logits = [torch.randn(rows, vocab, device="cuda") for _ in range(count)]
    plain, cut = settings_of(rows), settings_of(rows, top_k=50, top_p=0.9)
    free, cuts = sample.Plan(False, False, False), sample.Plan(False, True, False)
    if spans:
        return {
            str(i): replay_us(lambda i, s=s: draws.draw(logits[i % count], plain, free, span=s), count, 3.0)
            for i, s in enumerate(spans)
        }
    ways = {
        "greedy": lambda i: draws.draw(logits[i % count], None, sample.Plan(True, False, False)),
        "temperature": lambda i: draws.draw(logits[i % count], plain, free),
        "before": lambda i: draws.draw(logits[i % count], plain, free, span=-1),
        "top_k+top_p": lambda i: draws.draw(logits[i % count], cut, cuts),
    }
    return {way: replay_us(call, count, 3.0) for way, call in ways.items()}


def sampling() -> None:
    """Every way to draw, for some numbers of rows and vocabularies; and the race's knobs."""
    for vocab in (151936, 128256, 49152):
        for rows in (1, 8, 32, 256):
            text = " ".join(f"{way} {us:.1f}" for way, us in drawing(rows, vocab).items())
            say(f"draw {rows:3} x {vocab:6} floor {rows * vocab * 4 / BANDWIDTH * 1e6:.1f} {text}")
    tile, processors = draws.RACE_TILE, configs.multiprocessors(torch.device("cuda", 0))
    for rows in (1, 8, 32, 256):
        text = ""
        for draws.RACE_TILE in (256, 512, 1024):
            spans = tuple(draws.race_span(rows, 151936, each * processors) for each in (4, 8, 16, 32))
            text += f" | {draws.RACE_TILE}: " + " ".join(
                f"{us:.1f}" for us in drawing(rows, 151936, spans).values()
            )
        say(f"race S={rows} tile: programs 4 8 16 32{text}")
    draws.RACE_TILE = tile


# -- checks


# tokens, N, K, gated, stream, type of the output
CASES = [
    (256, 1024, 1024, False, True, None),
    (200, 1000, 1032, True, True, None),
    (77, 300, 4096, False, False, torch.float32),
    (130, 3000, 576, True, False, None),
    (513, 5000, 1024, False, True, torch.float32),
    (65, 20000, 1024, True, True, None),
]


def check_products() -> int:
    """Every tile whole and cut, odd sizes, repeated, on outputs that begin as NaN."""
    failures = 0
    torch.use_deterministic_algorithms(True, warn_only=True)
    for tile in TILES:
        for tokens, n, k, gated_, stream, dtype in CASES:
            weight = (torch.randn(n * (2 if gated_ else 1), k, device="cuda") / k**0.5).bfloat16()
            x = torch.randn(tokens, k, device="cuda").bfloat16()
            bias = torch.randn(len(weight), device="cuda").bfloat16() if tokens % 2 else None
            fusion, config = gpu.Fusion(bias, gated=gated_), replace(tile, stream=stream)
            pdl = configs.pdl(x.device)
            outs = [multiply(x, weight, config, fusion, dtype, pdl) for _ in range(3)]
            wrong = error(outs[0], definition(x, weight, fusion)[0])
            same = all(torch.equal(outs[0], out) for out in outs)
            if not wrong <= 6e-3 or not same or split_counters(x.device).any():
                failures += 1
                say(f"FAILED {brief(config)} M={tokens} N={n} K={k} gated={gated_}: {wrong:.3g}, same {same}")
    x, weight = (
        torch.randn(70, 512, device="cuda").bfloat16(),
        torch.randn(900, 512, device="cuda").bfloat16(),
    )
    wrong = error(
        gpu.library(x, weight, gpu.PLAIN, torch.float32, False), definition(x, weight, gpu.PLAIN)[0]
    )
    say(f"library float32 error {wrong:.2g} (below 1e-5: not rounded on the way)")
    torch.use_deterministic_algorithms(False)
    return failures + (not wrong < 1e-5)


def check_draws() -> int:
    """The race against the slow way, which it equals exactly, and against the definition."""
    failures = 0
    free = sample.Plan(False, False, False)
    for rows, vocab, spread in (
        (64, 151936, 0.5), (256, 128256, 3.0), (5, 151936, 8.0), (33, 49152, 0.0), (7, 100003, 30.0)
    ):  # fmt: skip
        logits = torch.randn(rows, vocab, device="cuda") * spread
        logits[0, : vocab // 2] = -float("inf")
        some = settings_of(rows)
        some.scale[1] = 0.0
        fast = draws.draw(logits, some, free, span=draws.race_span(rows, vocab, 2112))
        slow, defined = draws.draw(logits, some, free, span=-1), sample.draw_ref(logits, some)
        other, off = int((fast != slow).sum()), int((fast != defined).sum())
        if other or off > 0.02 * rows:
            failures += 1
            say(f"FAILED race {rows}x{vocab} {spread}: {other} differ, {off} from the definition")
    return failures


def compile_share(share: int, shares: int) -> None:
    """Compile every shares-th kernel into Triton's cache by launching it on few outputs."""
    x, todo = torch.randn(64, 1024, device="cuda", dtype=torch.bfloat16), 0
    weight, pdl = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16), configs.pdl(x.device)
    for tile in TILES:
        for gated_, dtype in ((True, None), (False, None), (False, torch.float32)):
            for stream in (True, False):
                todo += 1
                if todo % shares == share:
                    multiply(
                        x, weight, replace(tile, stream=stream), gpu.Fusion(gated=gated_), dtype, pdl, 132
                    )
    torch.cuda.synchronize()


def compile_all(processes: int) -> None:
    """The same from several processes at once."""
    command = [sys.executable, "-m", "headrace.bench.kernels_middle", "--share"]
    for process in [subprocess.Popen([*command, f"{i}/{processes}"]) for i in range(processes)]:
        process.wait()


def main() -> None:
    """Run the parts asked for, within the time given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="start no new measurement after this")
    parser.add_argument("--parts", default="check,sample,shapes", help="which of check, sample and shapes")
    parser.add_argument("--models", default="llama-3.1-8b,qwen3-0.6b", help="which of " + ", ".join(MODELS))
    parser.add_argument("--share", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    if options.share:
        share, shares = map(int, options.share.split("/"))
        compile_share(share, shares)
        return
    parts = options.parts.split(",")
    if "shapes" in parts or "check" in parts:
        compile_all(min(14, os.cpu_count() or 1))
    failures = 0
    with torch.inference_mode():
        if "check" in parts:
            failures = check_products() + check_draws()
            say(f"{failures} checks failed")
        if "sample" in parts:
            sampling()
        say(f"{until - time.monotonic():.0f} s left")
        if "shapes" in parts:
            shapes(options.models.split(","), until)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
