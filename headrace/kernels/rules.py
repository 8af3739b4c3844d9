"""Configurations that come from no table: where nothing was measured, and where no measurement is asked for.

Names and units are those of configs.py, which asks here what its tables do not say.
"""

from headrace.kernels.choices import (
    Gemv,
    Gemv8,
    Int4Few,
    Int4One,
    Int4Tile,
    Int4Wide,
    PagedFixed,
    Ring,
    Skinny,
    Wide,
)
from headrace.kernels.launch import parts_of, power_of_two

Capability = tuple[int, int]

MULTIPROCESSORS: dict[Capability, int] = {(8, 0): 108, (8, 9): 128, (9, 0): 132, (10, 0): 148}

# Weights with more elements than this are left to gpu/ring.py or cuBLAS, which read them as fast as `skinny_rule`.
SKINNY_ELEMENTS = 1 << 23

# Tokens up to which a smaller one uses our kernel, then cuBLAS.
SKINNY_TOKENS: dict[Capability, int] = {(8, 0): 32, (8, 9): 32, (9, 0): 64, (10, 0): 32}

# Tokens for which gpu/ring.py takes a larger one.
RING = range(2, 33)

# Tokens up to which a 4-bit weight is read once per 16 or 32 outputs, then in taller tiles.
INT4_FEW = 8

# And from which on it is unpacked.
INT4_TILED = 256

# Tile for batch-invariant products: (BLOCK_M, n, k, warps, stages). k and the instruction shape never vary.
INVARIANT_WIDE = (128, Skinny(128, 64, 1, 8, 3))
INVARIANT_NARROW = (64, Skinny(32, 64, 1, 4, 5))
# The same for more tokens than the wide one has rows, where tiles can be fetched by TMA: sums in the same order.
INVARIANT_MANY: dict[Capability, Wide] = {(9, 0): Wide(128, 256, 64, 8, 4), (10, 0): Wide(128, 256, 64, 8, 4)}


def gemv_rule(n: int, k: int, gated: bool, multiprocessors: int = 132) -> Gemv:
    """All of a program's weights in flight at once (about 64 elements per thread), and several waves' worth
    of programs so that every multiprocessor is busy."""
    chunk = min(power_of_two(k), 4096)
    warps = 4 if chunk <= 2048 else 8
    rows = max(1, 64 * 32 * warps // chunk // (2 if gated else 1))
    while rows > 1 and n // rows < 3 * multiprocessors:
        rows //= 2
    return Gemv(rows, chunk, warps)


def few_rule(cap: Capability, tokens: int, n: int, k: int, gated: bool, rings: bool) -> Skinny | Ring | None:
    """For a few tokens, None for the library's product. `rings`: whether gpu/ring.py can be compiled."""
    processors = MULTIPROCESSORS.get(cap, 132)
    if n * k * (2 if gated else 1) > SKINNY_ELEMENTS:
        fetched = rings and tokens in RING
        return ring_rule(tokens, n, k, gated, multiprocessors=processors) if fetched else None
    if tokens > SKINNY_TOKENS.get(cap, 0):
        return None
    return skinny_rule(tokens, n, k, gated, processors)


def skinny_rule(tokens: int, n: int, k: int, gated: bool, multiprocessors: int = 132) -> Skinny:
    """Narrow tiles for weights that fill the chip by their outputs, split inputs for those that do not."""
    width = 32 if tokens <= 32 else 64
    tiles = -(-n * (2 if gated else 1) // width)
    split = 1
    while tiles * split < multiprocessors and k // (split * 2) >= 256:
        split *= 2
    return Skinny(width, 128, split, 4, 4)


def height(tokens: int) -> int:
    """Tokens of a tile: the fewest that tensor cores take which hold these, at most 128."""
    return next((most for most in (16, 32, 64) if tokens <= most), 128)


def ring_rule(
    tokens: int, n: int, k: int, gated: bool = False, size: int = 2, multiprocessors: int = 132
) -> Ring:
    """Gate and up beside each other. `size`: bytes of a weight."""
    parts = parts_of(-(-n // 128), k * size // 128, 16, multiprocessors)
    return Ring(256 if gated else 128, height(tokens), parts)


def int4_rule(
    cap: Capability, tokens: int, n: int, k: int, gated: bool
) -> Int4One | Int4Few | Int4Tile | None:
    """For a 4-bit weight, None where it should be unpacked."""
    if tokens == 1:
        return int4_one_rule(k)
    if tokens <= INT4_FEW:
        return int4_few_rule(k)
    if tokens > INT4_TILED:
        return None
    return int4_tile_rule(tokens, n, k, gated, MULTIPROCESSORS.get(cap, 132))


def int4_one_rule(k: int) -> Int4One:
    """A warp has up to 512 inputs, which is what its registers hold next to two sets of weights."""
    warps = 8 if k > 1024 else 4
    return Int4One(warps, max(2, min(8, power_of_two(-(-k // (64 * warps))))), 1 if warps == 8 else 2)


def int4_few_rule(k: int) -> Int4Few:
    """Two tiles per warp at a time, so that registers allow two programs per multiprocessor and more."""
    chunk = min(power_of_two(k), 1024)
    return Int4Few(chunk, max(1, chunk // 128), 3 if chunk < k else 1)


def int4_tile_rule(tokens: int, n: int, k: int, gated: bool, multiprocessors: int = 132) -> Int4Tile:
    """Tall tiles, since every one reads all inputs; split for two programs per multiprocessor."""
    m = height(tokens)
    outputs = 128 if m < 128 else 64
    tiles = -(-n * (2 if gated else 1) // outputs) * -(-tokens // m)
    split = 1
    while tiles * split < 2 * multiprocessors and k // (split * 2) >= 512:
        split *= 2
    return Int4Tile(m, outputs, 128, split, 4, 4)


def int4_wide(tokens: int, n: int, k: int, gated: bool, multiprocessors: int = 132) -> Int4Wide:
    """Tiles of gpu/w4a16_wide.py for a weight [N, K]: tall ones where gate and up share them, or work is plenty.

    Still more work by tiles of 256 tokens, if tokens fill them: weights are unpacked half as often.
    """

    def plenty(rows: int, columns: int) -> bool:
        steps = -(-n // rows) * -(-tokens // columns) * k // 128  # by all programs together
        return steps >= 20 * multiprocessors

    wide = height(tokens)
    if tokens > 0.9 * 256 * -(-tokens // 256) and plenty(128, 256):
        return Int4Wide(128, 256)
    tall = gated and wide > 32  # the launch of an activation costs less than tall tiles of few tokens
    return Int4Wide(256 if tall or (wide == 128 and plenty(256, wide)) else 128, wide)


def gemv8_rule(k: int) -> Gemv8:
    """A warp holds up to 128 inputs per thread, half as many where several share a row; a row's worth in flight."""
    split = 1 if k <= 4096 else min(16, power_of_two(-(-k // 2048)))
    warps = max(4, split)
    return Gemv8(warps, split, max(1, min(6, (12 if k > 2048 else 24) // warps)), 1)


def skinny8_rule(tokens: int, n: int, k: int, multiprocessors: int = 132) -> Skinny:
    """Inputs are split until there are about two programs for each multiprocessor."""
    tiles, split = -(-n // 64), 1
    while tiles * split < 1.9 * multiprocessors and k // (split * 2) >= 512:
        split *= 2
    return Skinny(64, 128, split, 4, 6 if tokens <= 32 else 5)


def wide8_rule(tokens: int) -> Wide:
    """For more than 64 tokens times 8-bit weights and inputs."""
    return Wide(128, 256, 128, 8, 3) if tokens > 512 else Wide(64, 128, 128, 4, 4, 2)


def blocked8(tokens: int) -> Wide:
    """Configuration for more than 64 tokens times weights with a scale per block of 128 x 128."""
    return Wide(128, 128, 128, 8, 3) if tokens > 256 else Wide(64, 128, 128, 4, 4)


def paged_fixed(head_dim: int) -> PagedFixed:
    """By the model alone and from no table: what it gives must be the same after tuning. Fits into 99 KB."""
    return PagedFixed(64, 64, 2048, 4, 2) if head_dim <= 128 else PagedFixed(64, 32, 2048, 4, 2)


def paged_fixed_elements(rows: int, heads: int, kv_heads: int, head_dim: int, keys: int) -> int:
    """float32 numbers that splits of rows of up to `keys` leave for each other; none where no row has two."""
    splits = -(-keys // paged_fixed(head_dim).split)
    places = power_of_two(rows * kv_heads * splits) if splits > 1 else 0
    return places * (heads // kv_heads) * (head_dim + 2)
