"""Kernel configurations: measured ones by GPU generation and shape, a rule where none was measured.

Nothing tunes itself at start: `python -m headrace.bench.kernels_linear` prints rows to paste here.
Capabilities are (major, minor) as CUDA counts them; sizes are elements; K inputs, N outputs of a linear layer
(per half where gate and up are computed together).
"""

from dataclasses import dataclass
from functools import cache

import torch

from headrace.kernels.launch import power_of_two

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Gemv:
    """One token: `rows` outputs per program, `chunk` inputs per load, whole rows summed by one program."""

    rows: int
    chunk: int
    warps: int


@dataclass(frozen=True, slots=True)
class Skinny:
    """A few tokens through the matrix units: tile [M, n] in steps of k, the inputs cut into `split` parts."""

    n: int
    k: int
    split: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Wide:
    """Tens to thousands of tokens: tiles [m, n] in steps of k, `programs` persistent ones per multiprocessor.

    n counts gate and up both where they are computed together. With `stream` what does not fill a whole wave of
    tiles is cut along the inputs, so that every program gets the same number of steps.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    programs: int = 1
    stream: bool = False


# Which generations may start a kernel before its predecessor ends (programmatic dependent launch).
PDL: dict[Capability, bool] = {(9, 0): True, (10, 0): True}

# (N, K, gated) -> configuration for one token. Rows without a measurement follow gemv_rule.
GEMV: dict[Capability, dict[tuple[int, int, bool], Gemv]] = {
    (8, 0): {},
    (8, 9): {},
    (9, 0): {
        (4096, 1024, False): Gemv(8, 1024, 8),
        (1024, 2048, False): Gemv(4, 2048, 4),
        (3072, 1024, True): Gemv(8, 1024, 8),
        (1024, 3072, False): Gemv(1, 4096, 4),
        (151936, 1024, False): Gemv(4, 1024, 4),
        (6144, 4096, False): Gemv(4, 4096, 8),
        (4096, 4096, False): Gemv(4, 4096, 8),
        (14336, 4096, True): Gemv(2, 4096, 8),
        (4096, 14336, False): Gemv(1, 16384, 8),
        (128256, 4096, False): Gemv(4, 4096, 8),
    },
    (10, 0): {},
}  # fmt: skip

# (tokens at most, N, K, gated) -> configuration, None where cuBLAS was faster.
SKINNY: dict[Capability, dict[tuple[int, int, int, bool], Skinny | None]] = {
    (8, 0): {},
    (8, 9): {},
    (9, 0): {
        (16, 4096, 1024, False): Skinny(32, 128, 4, 4, 5),
        (16, 1024, 2048, False): Skinny(32, 128, 8, 4, 5),
        (16, 3072, 1024, True): Skinny(32, 256, 1, 4, 4),
        (16, 1024, 3072, False): Skinny(32, 128, 8, 4, 5),
        (16, 151936, 1024, False): Skinny(32, 128, 1, 4, 5),
        (16, 6144, 4096, False): None,
        (16, 4096, 4096, False): None,
        (16, 14336, 4096, True): None,
        (16, 4096, 14336, False): None,
        (16, 128256, 4096, False): Skinny(32, 256, 1, 4, 4),
        (32, 4096, 1024, False): None,
        (32, 1024, 2048, False): Skinny(32, 256, 4, 4, 4),
        (32, 3072, 1024, True): Skinny(32, 256, 1, 4, 4),
        (32, 1024, 3072, False): Skinny(16, 256, 4, 4, 4),
        (32, 151936, 1024, False): None,
        (32, 6144, 4096, False): None,
        (32, 4096, 4096, False): None,
        (32, 14336, 4096, True): None,
        (32, 4096, 14336, False): None,
        (32, 128256, 4096, False): Skinny(32, 128, 1, 4, 5),
        (64, 4096, 1024, False): Skinny(32, 128, 1, 4, 4),
        (64, 1024, 2048, False): Skinny(32, 128, 4, 4, 4),
        (64, 3072, 1024, True): Skinny(32, 128, 1, 4, 4),
        (64, 1024, 3072, False): Skinny(32, 128, 4, 4, 4),
        (64, 151936, 1024, False): Skinny(64, 64, 1, 4, 5),
        (64, 6144, 4096, False): None,
        (64, 4096, 4096, False): None,
        (64, 14336, 4096, True): None,
        (64, 4096, 14336, False): None,
        (64, 128256, 4096, False): Skinny(64, 64, 1, 4, 5),
    },
    (10, 0): {},
}  # fmt: skip

# (tokens at most, N, K, gated) -> configuration for what SKINNY leaves over; None and no row: cuBLAS.
MIDDLE: dict[Capability, dict[tuple[int, int, int, bool], Wide | None]] = {
    (8, 0): {},
    (8, 9): {},
    (9, 0): {
        (64, 14336, 4096, True): Wide(64, 128, 64, 4, 4, 2, False),
        (128, 14336, 4096, True): Wide(128, 128, 64, 8, 3, 2, False),
        (128, 3072, 1024, True): Wide(64, 128, 128, 4, 4, 1, False),
        (256, 3072, 1024, True): Wide(64, 128, 64, 4, 4, 2, False),
        (256, 4096, 1024, False): Wide(64, 128, 128, 4, 4, 1, False),
        (512, 4096, 1024, False): Wide(64, 256, 64, 4, 4, 1, False),
        (256, 128256, 4096, False): None,
        (512, 128256, 4096, False): Wide(128, 128, 64, 8, 3, 2, False),
    },
    (10, 0): {},
}
MIDDLE_STEPS = (64, 96, 128, 192, 256, 384, 512, 1 << 30)

# Weights with more elements than this and no measurement are left to cuBLAS, which reads them as fast.
SKINNY_ELEMENTS = 1 << 23

# Tokens up to which a linear layer without a measurement uses our kernel, then cuBLAS.
SKINNY_TOKENS: dict[Capability, int] = {(8, 0): 32, (8, 9): 32, (9, 0): 64, (10, 0): 32}

# Tokens up to which the norm before a projection is computed inside it.
FUSED_NORM_TOKENS: dict[Capability, int] = {(8, 0): 1, (8, 9): 1, (9, 0): 1, (10, 0): 1}

# Tile for batch-invariant products: (BLOCK_M, n, k, warps, stages). k and the instruction shape never vary.
INVARIANT_WIDE = (128, Skinny(128, 64, 1, 8, 3))
INVARIANT_NARROW = (64, Skinny(32, 64, 1, 4, 5))

MULTIPROCESSORS: dict[Capability, int] = {(8, 0): 108, (8, 9): 128, (9, 0): 132, (10, 0): 148}
TOKEN_STEPS = (16, 32, 64)


@cache
def capability(device: torch.device) -> Capability:
    """(major, minor) of a CUDA device; (0, 0) for anything else, such as Triton's interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def pdl(device: torch.device) -> bool:
    """Whether launches on this device may overlap the end of the kernel before."""
    return PDL.get(capability(device), False)


def gemv_rule(n: int, k: int, gated: bool, multiprocessors: int = 132) -> Gemv:
    """All of a program's weights in flight at once (about 64 elements per thread), and several waves' worth
    of programs so that every multiprocessor is busy."""
    chunk = min(power_of_two(k), 4096)
    warps = 4 if chunk <= 2048 else 8
    rows = max(1, 64 * 32 * warps // chunk // (2 if gated else 1))
    while rows > 1 and n // rows < 3 * multiprocessors:
        rows //= 2
    return Gemv(rows, chunk, warps)


def gemv(cap: Capability, n: int, k: int, gated: bool = False) -> Gemv:
    """Configuration for one token times a weight [N, K] (or [2N, K] where gated)."""
    found = GEMV.get(cap, {}).get((n, k, gated))
    return found or gemv_rule(n, k, gated, MULTIPROCESSORS.get(cap, 132))


def skinny_rule(tokens: int, n: int, k: int, gated: bool, multiprocessors: int = 132) -> Skinny:
    """Narrow tiles for weights that fill the chip by their outputs, split inputs for those that do not."""
    width = 32 if tokens <= 32 else 64
    tiles = -(-n * (2 if gated else 1) // width)
    split = 1
    while tiles * split < multiprocessors and k // (split * 2) >= 256:
        split *= 2
    return Skinny(width, 128, split, 4, 4)


def skinny(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Skinny | None:
    """Configuration for a few tokens, None where the library's product is the better choice."""
    table = SKINNY.get(cap, {})
    for most in TOKEN_STEPS:
        if tokens <= most and (most, n, k, gated) in table:
            return table[most, n, k, gated]
    if tokens > SKINNY_TOKENS.get(cap, 0) or n * k * (2 if gated else 1) > SKINNY_ELEMENTS:
        return None
    return skinny_rule(tokens, n, k, gated, MULTIPROCESSORS.get(cap, 132))


def middle(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Wide | None:
    """Configuration for a weight [N, K] (or [2N, K]) and any number of tokens, None for the library's product."""
    table = MIDDLE.get(cap)
    if not table:
        return None
    for most in MIDDLE_STEPS:
        if tokens <= most and (most, n, k, gated) in table:
            return table[most, n, k, gated]
    return None


@dataclass(frozen=True, slots=True)
class PagedDecode:
    """Attention of single queries: tiles of 16 keys per warp, `stages` of them in flight per program.

    A multiprocessor holds `programs`, for which `registers` caps those of a thread (None leaves them free); rows
    are not cut into pieces of fewer than `split` keys. `prefetch` keys of what comes next are asked for early.
    With `alone`, the kernel for few rows: rows of at most so many keys are not cut at all, and what is prefetched
    is on its way before the kernel in front has ended.
    """

    warps: int
    stages: int
    programs: int
    split: int
    registers: int | None = None
    alone: int | None = None
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class PagedPrefill:
    """Attention of many queries: `rows` (queries x heads of a group) against `keys` at a time.

    `registers` caps a thread's registers so that more programs fit on a multiprocessor, None leaves them free.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a CUDA device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


MANY = 1 << 30

# Head size at most -> (rows x kv heads) at most -> configuration, the first that serves; the last serves any number.
# (0, 0) is for every generation that has no row: 48 KB of shared memory suffice.
PAGED_DECODE: dict[Capability, dict[int, dict[int, PagedDecode]]] = {
    (0, 0): {
        64: {MANY: PagedDecode(4, 3, 2, 256)},
        128: {MANY: PagedDecode(4, 2, 2, 256)},
        256: {MANY: PagedDecode(2, 2, 2, 256)},
    },
    (8, 0): {
        64: {MANY: PagedDecode(4, 4, 2, 256)},
        128: {MANY: PagedDecode(4, 3, 2, 256)},
        256: {MANY: PagedDecode(2, 3, 2, 256)},
    },
    (9, 0): {
        64: {132: PagedDecode(4, 4, 2, 64, None, 512, 512), MANY: PagedDecode(4, 6, 2, 256)},
        128: {
            132: PagedDecode(4, 6, 1, 128, None, 256, 512),
            2048: PagedDecode(1, 6, 8, 256),
            MANY: PagedDecode(4, 4, 2, 256),  # (2, 4, 4) is faster alone, and slower in a whole step
        },
        256: {MANY: PagedDecode(2, 4, 2, 256)},
    },
    (10, 0): {
        64: {MANY: PagedDecode(4, 6, 2, 256)},
        128: {MANY: PagedDecode(4, 4, 2, 256)},
        256: {MANY: PagedDecode(2, 4, 2, 256)},
    },
}

# Head size at most -> (queries, keys) at most of a prompt row, on average -> configuration, as above.
PAGED_PREFILL: dict[Capability, dict[int, dict[tuple[int, int], PagedPrefill]]] = {
    (0, 0): {
        64: {(MANY, MANY): PagedPrefill(64, 64, 4, 2)},
        128: {(MANY, MANY): PagedPrefill(64, 32, 4, 2)},
        256: {(MANY, MANY): PagedPrefill(32, 16, 4, 2)},
    },
    (8, 0): {
        64: {(MANY, MANY): PagedPrefill(128, 64, 4, 3)},
        128: {(MANY, MANY): PagedPrefill(128, 64, 8, 2)},
        256: {(MANY, MANY): PagedPrefill(64, 32, 4, 2)},
    },
    (9, 0): {
        64: {(MANY, MANY): PagedPrefill(128, 128, 8, 3)},
        128: {
            (16, MANY): PagedPrefill(64, 64, 4, 3),
            (MANY, 2048): PagedPrefill(128, 32, 8, 3, 128),
            (MANY, MANY): PagedPrefill(128, 128, 8, 3),
        },
        256: {(MANY, MANY): PagedPrefill(128, 64, 8, 2)},
    },
    (10, 0): {
        64: {(MANY, MANY): PagedPrefill(128, 64, 8, 3)},
        128: {(MANY, MANY): PagedPrefill(128, 64, 8, 3)},
        256: {(MANY, MANY): PagedPrefill(128, 64, 8, 2)},
    },
}


def paged_decode(cap: Capability, head_dim: int, pairs: int = MANY) -> PagedDecode:
    """For the smallest listed head size that is at least this one; `pairs` are rows x kv heads of a step.

    Leave them out where a row's result must not depend on the rest of the step.
    """
    table = PAGED_DECODE.get(cap, PAGED_DECODE[0, 0])
    steps = table[min(n for n in table if n >= head_dim)]
    return steps[min(n for n in steps if n >= pairs)]


def paged_prefill(cap: Capability, head_dim: int, queries: int = MANY, keys: int = MANY) -> PagedPrefill:
    """As paged_decode; `queries` and `keys` are those of a step's prompt rows, on average."""
    table = PAGED_PREFILL.get(cap, PAGED_PREFILL[0, 0])
    steps = table[min(n for n in table if n >= head_dim)]
    return next(config for most, config in steps.items() if queries <= most[0] and keys <= most[1])
