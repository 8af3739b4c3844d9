"""Linear-layer kernels on this GPU against float32, over a table of shapes that includes odd ones."""

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import configs
from headrace.kernels.activation import gelu_mul_ref, silu_mul_ref
from headrace.kernels.configs import Gemv, Skinny
from headrace.kernels.copy_blocks import copy_blocks_ref
from headrace.kernels.embed import embed_ref
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.gpu.activation import gated
from headrace.kernels.gpu.copy_blocks import copy_blocks
from headrace.kernels.gpu.embed import gather
from headrace.kernels.gpu.norm import normalize
from headrace.kernels.gpu.rotate import rotate_store
from headrace.kernels.norm import rms_norm_ref
from headrace.kernels.rotate import rotate_store_ref

Case = tuple[str, float, float]  # name, error, bound

# N, K: layers of real models and sizes that no tile divides
SHAPES = [(4096, 1024), (1024, 2048), (1024, 3072), (4096, 14336), (1023, 1000), (77, 576), (5, 4104)]


def error(out: Tensor, wanted: Tensor) -> float:
    """Norm of the difference against the norm of what is wanted; infinite where anything is not finite."""
    if out.shape != wanted.shape or not out.isfinite().all():
        return float("inf")
    return float((out.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random numbers on the GPU."""
    return torch.randn(shape, device="cuda").to(dtype)


def definition(x: Tensor, weight: Tensor, fusion: gpu.Fusion) -> tuple[Tensor, Tensor]:
    """product() in float32; the residual sum is rounded as it is kept."""
    total = x if fusion.before is None else x + fusion.before
    out = total.float()
    out = out if fusion.gain is None else rms_norm_ref(out, fusion.gain, fusion.eps, fusion.offset)
    out = functional.linear(out, weight.float(), None if fusion.bias is None else fusion.bias.float())
    out = silu_mul_ref(out) if fusion.gated else out
    return (out if fusion.after is None else out + fusion.after.float()), total


def fused(tokens: int, n: int, k: int, flags: tuple[bool, ...]) -> tuple[Tensor, Tensor, gpu.Fusion]:
    """A random problem; flags are gated, norm, before, after, bias."""
    gated_, norm, before, after, bias = flags
    rows = 2 * n if gated_ else n
    weight = (torch.randn(rows, k, device="cuda") / k**0.5).bfloat16()
    return draw(tokens, k), weight, gpu.Fusion(
        draw(rows) if bias else None, draw(k) if norm else None, 1e-5, 0.5,
        draw(tokens, k) if norm and before else None, draw(tokens, n) if after else None, gated_,
    )  # fmt: skip


def products() -> Iterator[Case]:
    """Every shape through what the tables choose, and each kernel by itself, with and without overlap."""
    flags = [(False,) * 5, (True, True, False, False, False), (False, True, True, False, True),
             (False, False, False, True, False), (True, True, True, True, True)]  # fmt: skip
    for (n, k), tokens, which in itertools.product(SHAPES, (1, 2, 16, 33, 64, 130), range(len(flags))):
        if (which - n - tokens) % len(flags) >= (2 if tokens in (1, 16) else 1):
            continue  # every shape meets some fusions, every fusion some shapes
        x, weight, fusion = fused(tokens, n, k, flags[which])
        wanted, total = definition(x, weight, fusion)
        for kind in ("tables", "deterministic"):
            out, kept = gpu.product(x, weight, fusion, deterministic=kind == "deterministic")
            worse = max(error(out, wanted), error(kept, total))
            yield f"{kind} M={tokens} N={n} K={k} {which}", worse, 6e-3
        if tokens in (16, 64):
            config = Skinny(32, 64, 1 if fusion.gain is not None else 5, 4, 3)
            out, kept = gpu.skinny(x, weight, config, fusion, pdl=configs.pdl(x.device))
            worse = max(error(out, wanted), error(kept, total))
            yield f"{config} M={tokens} N={n} K={k} {which}", worse, 6e-3


def invariance() -> Iterator[Case]:
    """Deterministic rows do not depend on their neighbours; split sums do not depend on timing."""
    for n, k in ((1024, 2048), (151, 4104)):
        x, weight, fusion = fused(700, n, k, (False, True, False, False, False))
        together, _ = gpu.product(x, weight, fusion, deterministic=True)
        for tokens in (1, 7, 64, 65, 200):
            alone, _ = gpu.product(x[:tokens], weight, fusion, deterministic=True)
            yield f"invariant M={tokens} N={n} K={k}", float(not torch.equal(alone, together[:tokens])), 0.0
    x, weight, fusion = fused(16, 1024, 3072, (False,) * 5)
    first = gpu.skinny(x, weight, Skinny(32, 128, 8, 4, 4), fusion)[0]
    for i in range(20):
        again = gpu.skinny(x, weight, Skinny(32, 128, 8, 4, 4), fusion)[0]
        yield f"split repeated {i}", float(not torch.equal(first, again)), 0.0
    yield "split counters left", float(gpu.split_counters(x.device).any()), 0.0


def overlap() -> Iterator[Case]:
    """A chain of dependent kernels under overlapped launches equals the same chain without overlap.

    Two inputs take turns, so that a value read too early is the other input's and shows.
    """
    weights = [(torch.randn(1024, 1024, device="cuda") / 32).bfloat16() for _ in range(40)]
    gain = draw(1024).abs() + 0.5

    def chain(x: Tensor, pdl: bool) -> Tensor:
        y = x
        for i, weight in enumerate(weights):
            y, _ = normalize(y, None, gain, 1e-6, 0.0, pdl)
            fusion = gpu.Fusion(after=y)
            if len(x) == 1:
                y, _ = gpu.gemv(y, weight, Gemv(2, 512 << i % 2, 4), fusion, pdl=pdl)
            else:
                y, _ = gpu.skinny(y, weight, Skinny(32, 128, 1 + i % 4, 4, 4), fusion, pdl=pdl)
        return y

    for tokens in (1, 16):
        inputs = [draw(tokens, 1024) for _ in range(2)]
        wanted = [chain(x, False) for x in inputs]
        x = inputs[0].clone()
        chain(x, configs.pdl(x.device))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = chain(x, configs.pdl(x.device))
        wrong = 0
        for i in range(200):
            x.copy_(inputs[i % 2])
            graph.replay()
            wrong += not torch.equal(out, wanted[i % 2])
        yield f"overlapped chain M={tokens}: replays that differ", float(wrong), 0.0


def pointwise() -> Iterator[Case]:
    """Norms, activations, embedding, copies."""
    for rows, size in ((1, 1024), (3, 4096), (513, 1000), (7, 128), (2000, 14336)):
        x, residual, weight = draw(rows, size), draw(rows, size), draw(size)
        normed, total = normalize(x, residual, weight, 1e-6, 1.0, configs.pdl(x.device))
        yield (
            f"norm {rows}x{size}",
            error(normed, rms_norm_ref((x + residual).float(), weight, 1e-6, 1.0)),
            4e-3,
        )
        yield f"norm total {rows}x{size}", error(total, x + residual), 0.0
        wide = draw(rows, 2 * size) * 3
        yield f"silu {rows}x{size}", error(gated(wide, "silu"), silu_mul_ref(wide.float())), 5e-3
        yield f"gelu {rows}x{size}", error(gated(wide, "gelu"), gelu_mul_ref(wide.float())), 5e-3
        ids = torch.randint(0, rows, (37,), device="cuda")
        yield f"embed {rows}x{size}", error(gather(ids, x, 2.0), embed_ref(ids, x, 2.0)), 0.0
    cache = draw(40, 16, 8, 80)
    wanted, pairs = cache.clone(), torch.randperm(40, device="cuda").view(20, 2)
    copy_blocks_ref(wanted, pairs)
    copy_blocks(cache, pairs)
    yield "copy_blocks", error(cache, wanted), 0.0


def rotations() -> Iterator[Case]:
    """The launch between projection and attention."""
    for tokens, heads, kv_heads, size, rotary in (
        (1, 16, 8, 128, 128), (33, 32, 8, 128, 128), (500, 9, 3, 64, 64),
        (18, 12, 2, 80, 32), (5, 8, 1, 256, 256),
    ):  # fmt: skip
        for norm, kind in ((False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float8_e4m3fn)):
            fused_qkv = draw(tokens, (heads + 2 * kv_heads) * size).view(tokens, -1, size)
            q, k, v = fused_qkv.split([heads, kv_heads, kv_heads], 1)
            gain = draw(size) if norm else None
            caches = [
                torch.zeros(tokens // 16 + 2, 16, kv_heads, size, device="cuda").to(kind) for _ in range(4)
            ]
            angle = torch.rand(4000, rotary // 2, device="cuda") * 7
            table = torch.cat([angle.cos(), angle.sin()], -1)
            slots = torch.randperm((tokens // 16 + 2) * 16, device="cuda")[:tokens]
            rest = (torch.randint(0, 4000, (tokens,), device="cuda"), table, gain, gain, 1e-6, 0.0)
            pdl = configs.pdl(q.device)
            out = rotate_store(q, k, v, *rest, caches[0], caches[1], slots, pdl)
            plain = [c.bfloat16() for c in caches[2:]]  # torch does not index 8-bit floats
            wanted = rotate_store_ref(q, k, v, *rest, plain[0], plain[1], slots)
            name, bound = (
                f"{tokens}x{heads}/{kv_heads}x{size} norm={norm} {kind}",
                4e-3 if kind == q.dtype else 4e-2,
            )
            yield f"rotate q {name}", error(out, wanted), 4e-3
            yield f"rotate k {name}", error(caches[0].float(), plain[0]), bound
            yield f"rotate v {name}", error(caches[1].float(), plain[1]), 0.0 if kind == q.dtype else bound


def run_all(say: Callable[[str], None], until: float) -> int:
    """Check on fresh random inputs and outputs poisoned with NaN, while time lasts; the number of failures."""
    failures = count = 0
    worst = 0.0
    for part in (overlap, invariance, pointwise, rotations, products):
        # Fills new tensors with NaN; but fills between our kernels would keep them from overlapping.
        torch.use_deterministic_algorithms(part is not overlap, warn_only=True)
        for name, found, bound in part():
            if time.monotonic() > until:
                say(f"out of time in {part.__name__}")
                break
            count += 1
            worst = max(worst, found if bound else 0.0)
            if not found <= bound:
                failures += 1
                if failures <= 40:
                    say(f"FAILED {name}: {found:.3g} over {bound:.3g}")
    torch.use_deterministic_algorithms(False)
    say(f"{count} checks, {failures} failed, largest relative error {worst:.2g}")
    return failures
