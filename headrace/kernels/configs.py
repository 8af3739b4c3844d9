"""Kernel configurations: measured ones by GPU generation and shape, a rule where none was measured.

What was measured is in tables/*.json (see table.py); nothing tunes itself at start, `headrace bench kernels --tune`
does. Capabilities are (major, minor) as CUDA counts them; sizes are elements; K inputs, N outputs of a linear layer
(per half where gate and up are computed together).
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from headrace.base.errors import Refused
from headrace.kernels import table as files
from headrace.kernels.choices import (
    Choice,
    Gemv,
    Gemv8,
    Int4Few,
    Int4One,
    Int4Tile,
    Int4Wide,
    PagedDecode,
    PagedFew,
    PagedFixed,
    PagedPrefill,
    Ring,
    Skinny,
    Wide,
)
from headrace.kernels.launch import parts_of, power_of_two

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Table:
    """What was measured on one generation, for which cases. None stands for the library's product.

    gemv             (N, K, gated)
    skinny, middle   (tokens at most, N, K, gated); `middle` for what `skinny` leaves over
    int4             (tokens at most, N, K, gated) for 4-bit weights; None stands for unpacking them
    gemv8            (N, K, gated), weights in 8 bits
    skinny8          (tokens at most, N, K)
    wide8            (tokens at most, N, K, "fp8" or "int8")
    decode           head size at most
    prefill          head size at most -> queries and keys of a prompt row at most, on average
    few              head size at most -> rows at most; None stands for attention in a launch of its own
    """

    gemv: dict[tuple[int, int, bool], Gemv]
    skinny: dict[tuple[int, int, int, bool], Skinny | Ring | None]
    middle: dict[tuple[int, int, int, bool], Wide | None]
    int4: dict[tuple[int, int, int, bool], Int4One | Int4Few | Int4Tile | None]
    gemv8: dict[tuple[int, int, bool], Gemv8]
    skinny8: dict[tuple[int, int, int], Skinny]
    wide8: dict[tuple[int, int, int, str], Wide | None]
    decode: dict[int, PagedDecode]
    prefill: dict[int, dict[tuple[int, int], PagedPrefill]]
    few: dict[int, dict[int, PagedFew | None]]


MANY = 1 << 30
"""Any number of tokens, rows or keys; null in a file."""


@cache
def table(cap: Capability) -> Table:
    """The user's own rows for a generation over the package's, over those for any generation.

    Read once per process. Raises Refused for a file that is no table.
    """
    rows: files.Rows = {}
    for path in (files.packaged((0, 0)), files.packaged(cap), files.own(cap)):
        rows = files.merged(rows, files.read(path))
    try:
        return _table(rows)
    except (KeyError, TypeError) as fault:
        raise Refused(
            f"a table of kernel configurations for compute capability {cap} has a row that makes no sense: {fault}",
            hint=f"delete {files.own(cap)}",
        ) from fault


def _table(rows: files.Rows) -> Table:
    prefill: dict[int, dict[tuple[int, int], PagedPrefill]] = {}
    for row in rows["prefill"]:
        most = _most(row["queries"]), _most(row["keys"])
        prefill.setdefault(row["head_dim"], {})[most] = PagedPrefill(**row["use"])
    few: dict[int, dict[int, PagedFew | None]] = {}
    for row in rows["few"]:
        few.setdefault(row["head_dim"], {})[row["rows"]] = row["use"] and PagedFew(**row["use"])
    return Table(
        {(r["n"], r["k"], r["gated"]): Gemv(**r["use"]) for r in rows["gemv"]},
        {_case(r): r["use"] and _skinny(r["use"]) for r in rows["skinny"]},
        {_case(r): r["use"] and Wide(**r["use"]) for r in rows["middle"]},
        {_case(r): r["use"] and _int4(r["use"]) for r in rows["int4"]},
        {(r["n"], r["k"], r["gated"]): Gemv8(**r["use"]) for r in rows["gemv8"]},
        {(_most(r["tokens"]), r["n"], r["k"]): Skinny(**r["use"]) for r in rows["skinny8"]},
        {
            (_most(r["tokens"]), r["n"], r["k"], r["kind"]): r["use"] and Wide(**r["use"])
            for r in rows["wide8"]
        },
        {row["head_dim"]: PagedDecode(**row["use"]) for row in rows["decode"]},
        {size: dict(sorted(steps.items())) for size, steps in prefill.items()},
        {size: dict(sorted(steps.items())) for size, steps in few.items()},
    )


def _skinny(use: dict[str, Any]) -> Skinny | Ring:
    return (Ring if "parts" in use else Skinny)(**use)


def _int4(use: dict[str, Any]) -> Int4One | Int4Few | Int4Tile:
    return (Int4One if "tiles" in use else Int4Few if "chunk" in use else Int4Tile)(**use)


def _most(said: int | None) -> int:
    return MANY if said is None else said


def _case(row: files.Row) -> tuple[int, int, int, bool]:
    return _most(row["tokens"]), row["n"], row["k"], row["gated"]


def brief(config: Choice | None) -> dict[str, Any] | None:
    """A configuration as a file's row has it under `use`: without fields that are at their defaults."""
    if config is None:
        return None
    return {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default}


# Which generations may start a kernel before its predecessor ends (programmatic dependent launch).
PDL: dict[Capability, bool] = {(9, 0): True, (10, 0): True}

# Weights with more elements than this and no measurement are left to gpu/ring.py or cuBLAS, which read them as fast.
SKINNY_ELEMENTS = 1 << 23

# Tokens up to which a linear layer without a measurement uses our kernel, then cuBLAS.
SKINNY_TOKENS: dict[Capability, int] = {(8, 0): 32, (8, 9): 32, (9, 0): 64, (10, 0): 32}

# Tokens up to which the norm before a projection is computed inside it.
FUSED_NORM_TOKENS: dict[Capability, int] = {(8, 0): 1, (8, 9): 1, (9, 0): 1, (10, 0): 1}

# Versions of Triton whose Gluon our kernels in it are compiled with; others get the plain kernels.
GLUON = ((3, 6), (3, 7), (3, 8))

# Tile for batch-invariant products: (BLOCK_M, n, k, warps, stages). k and the instruction shape never vary.
INVARIANT_WIDE = (128, Skinny(128, 64, 1, 8, 3))
INVARIANT_NARROW = (64, Skinny(32, 64, 1, 4, 5))
# The same for more tokens than the wide one has rows, where tiles can be fetched by TMA: sums in the same order.
INVARIANT_MANY: dict[Capability, Wide] = {(9, 0): Wide(128, 256, 64, 8, 4), (10, 0): Wide(128, 256, 64, 8, 4)}

MULTIPROCESSORS: dict[Capability, int] = {(8, 0): 108, (8, 9): 128, (9, 0): 132, (10, 0): 148}
TOKEN_STEPS = (16, 32, 64)
MIDDLE_STEPS = (64, 96, 128, 192, 256, 384, 512, MANY)


@cache
def capability(device: torch.device) -> Capability:
    """(major, minor) of a CUDA device; (0, 0) for anything else, such as Triton's interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def pdl(device: torch.device) -> bool:
    """Whether launches on this device may overlap the end of the kernel before."""
    return PDL.get(capability(device), False)


@cache
def gluon() -> bool:
    """Whether this is a Triton that our kernels in Gluon are written for."""
    import triton  # only GPU builds of torch bring it

    return tuple(int(part) for part in triton.__version__.split(".")[:2]) in GLUON


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
    found = table(cap).gemv.get((n, k, gated))
    return found or gemv_rule(n, k, gated, MULTIPROCESSORS.get(cap, 132))


def skinny_rule(tokens: int, n: int, k: int, gated: bool, multiprocessors: int = 132) -> Skinny:
    """Narrow tiles for weights that fill the chip by their outputs, split inputs for those that do not."""
    width = 32 if tokens <= 32 else 64
    tiles = -(-n * (2 if gated else 1) // width)
    split = 1
    while tiles * split < multiprocessors and k // (split * 2) >= 256:
        split *= 2
    return Skinny(width, 128, split, 4, 4)


RING = range(2, 33)
"""Tokens for which gpu/ring.py takes a layer in 16 bits that is too large for `skinny_rule`."""
RING8 = range(2, 65)
"""And any layer in 8 bits."""


def rings(cap: Capability) -> bool:
    """Whether gpu/ring.py can be compiled for this generation by this Triton."""
    return cap == (9, 0) and gluon()


def ring_rule(
    tokens: int, n: int, k: int, gated: bool = False, size: int = 2, multiprocessors: int = 132
) -> Ring:
    """Gate and up beside each other. `size`: bytes of a weight."""
    tall = next((most for most in TOKEN_STEPS if tokens <= most), 128)
    parts = parts_of(-(-n // 128), k * size // 128, 16, multiprocessors)
    return Ring(256 if gated else 128, tall, parts)


def skinny(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Skinny | Ring | None:
    """Configuration for a few tokens, None where the library's product is the better choice.

    A ring that cannot be compiled here is as if it had not been measured.
    """
    measured = table(cap).skinny
    for most in TOKEN_STEPS:
        if tokens <= most and (most, n, k, gated) in measured:
            found = measured[most, n, k, gated]
            if not isinstance(found, Ring) or rings(cap):
                return found
    processors = MULTIPROCESSORS.get(cap, 132)
    if n * k * (2 if gated else 1) > SKINNY_ELEMENTS:
        fetched = tokens in RING and rings(cap)
        return ring_rule(tokens, n, k, gated, multiprocessors=processors) if fetched else None
    if tokens > SKINNY_TOKENS.get(cap, 0):
        return None
    return skinny_rule(tokens, n, k, gated, processors)


def middle(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Wide | None:
    """Configuration for a weight [N, K] (or [2N, K]) and any number of tokens, None for the library's product."""
    measured = table(cap).middle
    if not measured:
        return None
    for most in MIDDLE_STEPS:
        if tokens <= most and (most, n, k, gated) in measured:
            return measured[most, n, k, gated]
    return None


INT4_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
INT4_FEW = 8
"""Tokens up to which a 4-bit weight without a measurement is read once per 16 or 32 outputs, then in taller tiles."""
INT4_TILED = 256
"""And from which on it is unpacked."""


INT4_FETCHED: dict[Capability, tuple[int, int]] = {(9, 0): (2, 2048)}
"""Least and most tokens for gpu/w4a16_wide.py, where it takes a layer."""


def fetches4(cap: Capability, tokens: int) -> bool:
    """Whether gpu/w4a16_wide.py comes first for this many tokens, whatever the table says."""
    least, most = INT4_FETCHED.get(cap, (1, 0))
    return least <= tokens <= most and gluon()


def int4_wide(tokens: int, n: int, k: int, gated: bool, multiprocessors: int = 132) -> Int4Wide:
    """Tiles of gpu/w4a16_wide.py for a weight [N, K]: tall ones where gate and up share them, or work is plenty."""
    wide = next((most for most in (16, 32, 64) if tokens <= most), 128)
    turns = -(-n // 256) * -(-tokens // wide) * k // 128  # of a tall tile, by all programs together
    return Int4Wide(256 if gated or (wide == 128 and turns >= 20 * multiprocessors) else 128, wide)


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
    m = next(most for most in (16, 32, 64, 128) if tokens <= most or most == 128)
    height = 128 if m < 128 else 64
    tiles = -(-n * (2 if gated else 1) // height) * -(-tokens // m)
    split = 1
    while tiles * split < 2 * multiprocessors and k // (split * 2) >= 512:
        split *= 2
    return Int4Tile(m, height, 128, split, 4, 4)


def int4(
    cap: Capability, tokens: int, n: int, k: int, gated: bool = False
) -> Int4One | Int4Few | Int4Tile | None:
    """Configuration for a 4-bit weight [N, K] (or [2N, K]), None where it should be unpacked; never for one token."""
    measured = table(cap).int4
    for most in INT4_STEPS:
        if tokens <= most and (most, n, k, gated) in measured and (tokens == 1) == (most == 1):
            return measured[most, n, k, gated]
    if tokens == 1:
        return int4_one_rule(k)
    if tokens <= INT4_FEW:
        return int4_few_rule(k)
    if tokens > INT4_TILED:
        return None
    return int4_tile_rule(tokens, n, k, gated, MULTIPROCESSORS.get(cap, 132))


def gemv8_rule(k: int) -> Gemv8:
    """A warp holds up to 128 inputs per thread, half as many where several share a row; a row's worth in flight."""
    split = 1 if k <= 4096 else min(16, power_of_two(-(-k // 2048)))
    warps = max(4, split)
    return Gemv8(warps, split, max(1, min(6, (12 if k > 2048 else 24) // warps)), 1)


def gemv8(cap: Capability, n: int, k: int, gated: bool = False) -> Gemv8:
    """Configuration for one token times 8-bit weights [N, K] (or [2N, K] where gated)."""
    return table(cap).gemv8.get((n, k, gated)) or gemv8_rule(k)


def skinny8_rule(tokens: int, n: int, k: int, multiprocessors: int = 132) -> Skinny:
    """Inputs are split until there are about two programs for each multiprocessor."""
    tiles, split = -(-n // 64), 1
    while tiles * split < 1.9 * multiprocessors and k // (split * 2) >= 512:
        split *= 2
    return Skinny(64, 128, split, 4, 6 if tokens <= 32 else 5)


def skinny8(cap: Capability, tokens: int, n: int, k: int) -> Skinny:
    """Configuration for up to 64 tokens times 8-bit weights [N, K]."""
    measured = table(cap).skinny8
    for most in TOKEN_STEPS:
        if tokens <= most and (most, n, k) in measured:
            return measured[most, n, k]
    return skinny8_rule(tokens, n, k, MULTIPROCESSORS.get(cap, 132))


def fetches8(cap: Capability, tokens: int) -> bool:
    """Whether gpu/ring.py comes first for this many tokens, whatever the table says."""
    return tokens in RING8 and rings(cap)


def wide8(cap: Capability, tokens: int, n: int, k: int, kind: str) -> Wide | None:
    """Configuration for any number of tokens times 8-bit weights; None stands for the library's product of fp8."""
    measured = table(cap).wide8
    for most in MIDDLE_STEPS:
        if tokens <= most and (most, n, k, kind) in measured:
            return measured[most, n, k, kind]
    if kind == "fp8":
        return None
    return Wide(128, 256, 128, 8, 3) if tokens > 512 else Wide(64, 128, 128, 4, 4, 2)


def blocked8(tokens: int) -> Wide:
    """Configuration for more than 64 tokens times weights with a scale per block of 128 x 128."""
    return Wide(128, 128, 128, 8, 3) if tokens > 256 else Wide(64, 128, 128, 4, 4)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a CUDA device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def paged_decode(cap: Capability, head_dim: int) -> PagedDecode:
    """For the smallest listed head size that is at least this one."""
    sizes = table(cap).decode
    return sizes[min(n for n in sizes if n >= head_dim)]


def paged_few(cap: Capability, head_dim: int, rows: int) -> PagedFew | None:
    """As paged_decode, for a step of so many rows; None where nothing was measured or two launches are faster."""
    sizes = table(cap).few
    steps = sizes.get(min((n for n in sizes if n >= head_dim), default=0), {})
    return next((config for most, config in steps.items() if rows <= most), None)


def early(cap: Capability) -> bool:
    """Whether steps may have attention that reads tables before it has waited: see gpu/paged_few.py."""
    return any(config for steps in table(cap).few.values() for config in steps.values())


def paged_fixed(head_dim: int) -> PagedFixed:
    """By the model alone and from no table: what it gives must be the same after tuning. Fits into 99 KB."""
    return PagedFixed(64, 64, 2048, 4, 2) if head_dim <= 128 else PagedFixed(64, 32, 2048, 4, 2)


def paged_fixed_elements(rows: int, heads: int, kv_heads: int, head_dim: int, keys: int) -> int:
    """float32 numbers that splits of rows of up to `keys` leave for each other; none where no row has two."""
    splits = -(-keys // paged_fixed(head_dim).split)
    places = power_of_two(rows * kv_heads * splits) if splits > 1 else 0
    return places * (heads // kv_heads) * (head_dim + 2)


def paged_prefill(cap: Capability, head_dim: int, queries: int = MANY, keys: int = MANY) -> PagedPrefill:
    """As paged_decode; `queries` and `keys` are those of a step's prompt rows, on average."""
    sizes = table(cap).prefill
    steps = sizes[min(n for n in sizes if n >= head_dim)]
    return next(config for most, config in steps.items() if queries <= most[0] and keys <= most[1])
