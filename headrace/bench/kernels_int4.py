"""Cases of linear layers with 4-bit weights in groups of 128, and the configurations that may be fastest for them."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from headrace.bench.kernels_case import Case, Launch, Layer, Sizes, Way, draw, error
from headrace.bench.kernels_linear import TOKENS, definition, fusion
from headrace.bench.replay import Call
from headrace.kernels import configs
from headrace.kernels.choices import Int4Few, Int4One, Int4Tile
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.gpu import w4a16, w4a16_few, w4a16_one, w4a16_tile
from headrace.kernels.w4a16 import COLUMNS, ROWS, Int4Weight, fits, unpack_ref

KERNELS = ("linear4",)
GROUP = 128
LEVELS = 1 << 15


def cases(sizes: Sizes, way: Way) -> Iterator[Case]:
    """Layers of a block; the head stays in 16 bits."""
    for layer in layers(sizes):
        for tokens in TOKENS:
            make, operations = partial(product, layer, tokens), 2.0 * tokens * layer.rows * layer.k
            read = tokens * 2 * (layer.k * (3 if layer.normed else 1) + layer.n)
            yield Case("linear4", f"{layer.name} {tokens}", moved(layer) + read, make, operations)


def layers(sizes: Sizes) -> list[Layer]:
    """Those that can be tiled."""
    return [y for y in sizes.layers[:-1] if not y.k % GROUP and fits(y.rows, y.k, y.k // GROUP, y.gated)]


def moved(layer: Layer) -> int:
    """Bytes of the weight."""
    return layer.rows * layer.k // 2 + 2 * layer.rows * layer.k // GROUP


def weights(layer: Layer, copies: int, device: torch.device) -> list[Int4Weight]:
    """Random ones, scaled so that sums stay near one."""
    shape = layer.rows // ROWS, layer.k // COLUMNS, ROWS * COLUMNS // 4
    made = []
    for _ in range(copies):
        tiles = torch.randint(-LEVELS, LEVELS, shape, dtype=torch.int16, device=device)
        scale = (torch.rand(layer.rows, layer.k // GROUP, device=device) + 0.5) / (4 * layer.k**0.5)
        made.append(Int4Weight(tiles, scale.bfloat16()))
    return made


def product(layer: Layer, tokens: int, copies: int, device: torch.device) -> Launch:
    """What the tables choose; the library is the same layer with weights in 16 bits, as the tables for these choose."""
    copied, around = weights(layer, copies, device), fusion(layer, tokens, device)
    x = draw(tokens, layer.k, device=device)
    plain = [draw(layer.rows, layer.k, device=device) for _ in range(max(2, copies // 4))]

    def ours(weight: Int4Weight) -> tuple[Tensor, Tensor]:
        return w4a16.product(
            x, around.before, around.gain, around.eps, around.offset, weight, around.bias, layer.gated
        )

    def check() -> float:
        return max(map(error, ours(copied[0]), definition(x, unpack_ref(copied[0], torch.float32), around)))

    return Launch(
        [partial(ours, w) for w in copied], check, [partial(gpu.product, x, w, around) for w in plain]
    )


# -- candidates -------------------------------------------------------------------------------------------------

TOKEN_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def candidates(layer: Layer, tokens: int) -> Iterator[Int4One | Int4Few | Int4Tile | None]:
    """For one token no tiles, from 16 on nothing else; unpacking where it may pay."""
    if tokens == 1:
        yield from ones(layer)
    if tokens <= 8:
        yield from fews(layer, tokens)
    if tokens > 1:
        yield from tiles(layer, tokens)
    if tokens >= 64:
        yield None


def ones(layer: Layer) -> Iterator[Int4One]:
    """As many programs as registers allow; inputs not cut into parts of less than 1024, nor held twice over."""
    held = layer.k // COLUMNS
    for warps in (2, 4, 8, 16):
        for each in (2, 4, 8):
            covered = warps * each
            if warps * (16 + 28 * each) > 2048 or covered >= 2 * held or covered < min(16, held):
                continue
            if -(-held // covered) > 8:
                continue
            most = max(1, 2048 // (warps * (16 + 28 * each)))
            for programs in sorted({1, 2, 3, 4, 6} & set(range(1, most + 1))):
                yield from (Int4One(warps, each, programs, ahead) for ahead in (0, 1, 3))


def fews(layer: Layer, tokens: int) -> Iterator[Int4Few]:
    """One to eight tiles per warp at a time."""
    for chunk in (512, 1024, 2048, 4096):
        for warps in (4, 8, 16):
            each = chunk // COLUMNS // warps
            if not 1 <= each <= (8 if tokens == 1 else 4) or chunk >= 2 * layer.k:
                continue
            for stages in (1, 2, 3) if chunk < layer.k else (1,):
                for pair in (False, True) if not layer.gated and layer.n >= 4096 else (False,):
                    yield Int4Few(chunk, warps, stages, pair)


def tiles(layer: Layer, tokens: int) -> Iterator[Int4Tile]:
    """Tiles and splits that give the chip between one program per multiprocessor and a few waves of them."""
    tall = next(m for m in (16, 32, 64, 128) if tokens <= m or m == 128)
    for m in {tall, min(tall, 64)}:
        for n, k, warps, stages in (
            (64, 128, 4, 4), (64, 256, 4, 3), (128, 128, 4, 3), (128, 128, 4, 4), (128, 256, 4, 3),
            (128, 128, 8, 3), (256, 128, 8, 3),
        ):  # fmt: skip
            if m * n > 128 * 128 or (k == 256 and m > 64) or (warps == 8) != (m * n >= 64 * 128):
                continue
            for split in (1, 2, 4, 8, 16):
                programs = -(-layer.rows // n) * split * -(-tokens // m)
                if layer.k // split >= k and (60 <= programs <= 1100 or (split == 1 and programs > 1100)):
                    yield Int4Tile(m, n, k, split, warps, stages)


def trial(
    layer: Layer, tokens: int, config: Int4One | Int4Few | Int4Tile | None, copies: int, device: torch.device
) -> Launch:
    """One kernel by itself: of one token with the norm inside, else with the norm left out."""
    around = fusion(layer, tokens, device) if tokens == 1 else gpu.Fusion(gated=layer.gated)
    x, pdl = draw(tokens, layer.k, device=device), configs.pdl(device)
    copied = weights(layer, copies, device)
    match config:
        case Int4One():
            programs = configs.multiprocessors(device)
            calls: list[Call] = [partial(w4a16_one.one, x, w, config, programs, around, pdl) for w in copied]
        case Int4Few():
            calls = [partial(w4a16_few.few, x, w, config, around, pdl) for w in copied]
        case Int4Tile():
            calls = [partial(w4a16_tile.tile, x, w, config, around, pdl) for w in copied]
        case None:
            calls = [partial(w4a16.through_memory, x, w, around, pdl) for w in copied]
    return Launch(calls, lambda: 0.0)
