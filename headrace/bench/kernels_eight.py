"""Cases of linear layers with 8-bit weights, and of rounding their inputs, as the engine computes them."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from headrace.bench.kernels_case import Case, Launch, Layer, Sizes, Way, draw, error
from headrace.bench.kernels_linear import EPS
from headrace.bench.replay import Call
from headrace.kernels import configs
from headrace.kernels.activation import silu_mul, silu_mul_ref
from headrace.kernels.choices import Gemv8, Skinny, Wide
from headrace.kernels.gpu.gemv8 import Around8, gemv8
from headrace.kernels.gpu.product import Fusion
from headrace.kernels.gpu.tiles8 import skinny8, wide8
from headrace.kernels.norm import rms_norm_ref
from headrace.kernels.rounding import DTYPES, LARGEST, Kind, norm_round, round_rows, rounded, silu_mul_round
from headrace.kernels.scaled import Weight8, library, library_fits, linear8, norm_linear8, scaled_linear_ref

KERNELS = ("linear8", "round8")
TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 8192)
ROWS = (1, 32, 512, 8192)
KINDS: tuple[Kind, ...] = ("fp8", "int8")
BOUND = 1.6e-2
"""Inputs next to a tie are rounded to either side, by a sixteenth of what they are: measured 0.013 at most."""


def cases(sizes: Sizes, way: Way) -> Iterator[Case]:
    """Layers of a block in both kinds; the head stays in 16 bits. Rounding of what each layer gets, as floats."""
    for layer in sizes.layers[:-1]:
        for kind in KINDS:
            for tokens in TOKENS:
                operations = tokens * layer.rows * layer.k  # two each, of which hardware does twice as many
                make = partial(product, layer, tokens, kind)
                moved = layer.rows * layer.k + tokens * 2 * (layer.k * (3 if layer.normed else 1) + layer.n)
                yield Case("linear8", f"{kind} {layer.name} {tokens}", moved, make, operations, BOUND)
    for tokens in ROWS:
        yield Case(
            "round8", f"norm {tokens}", 7 * tokens * sizes.hidden, partial(normed, sizes.hidden, tokens)
        )
        yield Case("round8", f"silu {tokens}", 5 * tokens * sizes.inner, partial(gated, sizes.inner, tokens))


def weights(layer: Layer, kind: Kind, copies: int, device: torch.device) -> list[Weight8]:
    """Copies of one weight, scaled so that sums stay near one."""
    made = []
    for _ in range(copies):
        values, scale = rounded(draw(layer.rows, layer.k, device=device), LARGEST[kind], DTYPES[kind])
        made.append(Weight8(values, scale / layer.k**0.5))
    return made


def around(layer: Layer, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, residual and the norm's weight."""
    x, residual = draw(tokens, layer.k, device=device), draw(tokens, layer.k, device=device)
    return x, residual, draw(layer.k, device=device)


def product(layer: Layer, tokens: int, kind: Kind, copies: int, device: torch.device) -> Launch:
    """What the tables choose, and for floats torch's product with rounding in a launch before."""
    copied, (x, residual, gain) = weights(layer, kind, copies, device), around(layer, tokens, device)

    def ours(w: Weight8) -> Tensor:
        if layer.normed:
            return norm_linear8(x, residual, gain, EPS, 0.0, w, layer.gated)[0]
        return linear8(x, w)

    def theirs(w: Weight8) -> Tensor:
        if layer.normed:
            values, scale, _ = norm_round(x, residual, gain, EPS, 0.0, kind)
        else:
            values, scale = round_rows(x, kind)
        out = library(values, scale, w, x.dtype)
        return silu_mul(out) if layer.gated else out

    def check() -> float:
        inputs = rms_norm_ref(x + residual, gain, EPS) if layer.normed else x
        values, scale = rounded(inputs, LARGEST[kind], DTYPES[kind])
        wanted = scaled_linear_ref(values, scale.flatten(), copied[0], torch.float32)
        return error(ours(copied[0]), silu_mul_ref(wanted) if layer.gated else wanted)

    has = kind == "fp8" and library_fits(x, copied[0])
    return Launch(
        [partial(ours, w) for w in copied], check, [partial(theirs, w) for w in copied] if has else []
    )


def gemv(x: Tensor, w: Weight8, config: Gemv8, fused: Fusion) -> tuple[Tensor, Tensor]:
    """(out, x + before) of one token, norm and rounding inside."""
    inside = Around8(
        gain=fused.gain, eps=fused.eps, offset=fused.offset, before=fused.before, gated=fused.gated
    )
    programs = configs.multiprocessors(x.device) * config.programs
    return gemv8(x, w.weight, w.scale, config, programs, inside, x.dtype, configs.pdl(x.device))


def normed(size: int, tokens: int, copies: int, device: torch.device) -> Launch:
    """Residual, norm and rounding in one."""
    pairs = [(draw(tokens, size, device=device), draw(tokens, size, device=device)) for _ in range(copies)]
    gain = draw(size, device=device)

    def ours(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return norm_round(x, residual, gain, EPS, 0.0, "fp8")

    def check() -> float:
        values, scale, _ = ours(*pairs[0])
        return (
            error(values.float() * scale[:, None], rms_norm_ref(pairs[0][0] + pairs[0][1], gain, EPS)) - NOISE
        )

    return Launch([partial(ours, *pair) for pair in pairs], check)


def gated(size: int, tokens: int, copies: int, device: torch.device) -> Launch:
    """Gate and rounding in one."""
    drawn = [draw(tokens, 2 * size, device=device) for _ in range(copies)]

    def check() -> float:
        values, scale = silu_mul_round(drawn[0], "fp8")
        return error(values.float() * scale[:, None], silu_mul_ref(drawn[0])) - NOISE

    return Launch([partial(silu_mul_round, x, "fp8") for x in drawn], check)


NOISE = 0.028
"""What rounding to e4m3 does to normal numbers, relative to their norm: measured 0.026 to 0.027."""


# -- candidates -------------------------------------------------------------------------------------------------


def gemvs(layer: Layer) -> Iterator[Gemv8]:
    """Rows of a warp or of several, of which a thread holds up to 128 inputs."""
    for split in (1, 2, 4, 8, 16):
        if layer.k / split > 4096 or (split > 1 and layer.k / split < 1024):
            continue
        for warps in (4, 8, 16):
            for programs in (1, 2, 3, 4, 6):
                if split <= warps and 8 <= warps * programs <= 24:
                    yield from (Gemv8(warps, split, programs, ahead) for ahead in (1, 3))


def skinnies(layer: Layer) -> Iterator[Skinny]:
    """Between one and six programs per multiprocessor of 132."""
    for n, k, stages in ((64, 128, 6), (64, 256, 3), (128, 128, 4)):
        for split in (1, 2, 4, 8, 16):
            if 100 <= -(-layer.rows // n) * split <= 800 and layer.k // split >= 2 * k:
                yield Skinny(n, k, split, 4, stages)


WIDE = (
    Wide(128, 256, 128, 8, 3), Wide(128, 128, 128, 8, 4), Wide(128, 128, 128, 4, 3, 2), Wide(64, 128, 128, 4, 4, 2),
    Wide(64, 256, 128, 4, 3), Wide(256, 128, 128, 8, 3),
)  # fmt: skip


def trial(
    layer: Layer,
    tokens: int,
    kind: Kind,
    config: Skinny | Wide | None,
    copies: int,
    device: torch.device,
) -> Launch:
    """One kernel by itself, norm and rounding left out."""
    copied, x = weights(layer, kind, copies, device), draw(tokens, layer.k, device=device)
    dtype, pdl = x.dtype, configs.pdl(device)
    values, scale = round_rows(x, kind)
    match config:
        case Skinny() | Wide():
            kernel = skinny8 if isinstance(config, Skinny) else wide8
            calls: list[Call] = [
                partial(kernel, values, scale, w.weight, w.scale, config, None, dtype, pdl) for w in copied
            ]
        case None:
            calls = [partial(library, values, scale, w, dtype) for w in copied]
    return Launch(calls, lambda: 0.0)
