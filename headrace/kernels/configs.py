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


@dataclass(frozen=True, slots=True)
class PagedDecode:
    """Attention of single queries: tiles of 16 keys per warp, `stages` of them in flight per program.

    A multiprocessor holds `programs`; rows are not cut into pieces of fewer than `split` keys.
    """

    warps: int
    stages: int
    programs: int
    split: int


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


@dataclass(frozen=True, slots=True)
class PagedFixed:
    """Attention whose result depends on a query and its keys alone: as PagedPrefill, a new sum every `split` keys.

    Where rows decode, `programs` run on each multiprocessor.
    """

    rows: int
    keys: int
    split: int
    warps: int
    stages: int
    programs: int = 2


@dataclass(frozen=True, slots=True)
class Table:
    """What was measured on one generation, for which cases. None stands for the library's product.

    gemv             (N, K, gated)
    skinny, middle   (tokens at most, N, K, gated); `middle` for what `skinny` leaves over
    decode           head size at most
    prefill          head size at most -> queries and keys of a prompt row at most, on average
    """

    gemv: dict[tuple[int, int, bool], Gemv]
    skinny: dict[tuple[int, int, int, bool], Skinny | None]
    middle: dict[tuple[int, int, int, bool], Wide | None]
    decode: dict[int, PagedDecode]
    prefill: dict[int, dict[tuple[int, int], PagedPrefill]]


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
    return Table(
        {(r["n"], r["k"], r["gated"]): Gemv(**r["use"]) for r in rows["gemv"]},
        {_case(r): r["use"] and Skinny(**r["use"]) for r in rows["skinny"]},
        {_case(r): r["use"] and Wide(**r["use"]) for r in rows["middle"]},
        {row["head_dim"]: PagedDecode(**row["use"]) for row in rows["decode"]},
        {size: dict(sorted(steps.items())) for size, steps in prefill.items()},
    )


def _most(said: int | None) -> int:
    return MANY if said is None else said


def _case(row: files.Row) -> tuple[int, int, int, bool]:
    return _most(row["tokens"]), row["n"], row["k"], row["gated"]


def brief(config: Gemv | Skinny | Wide | PagedDecode | PagedPrefill | None) -> dict[str, Any] | None:
    """A configuration as a file's row has it under `use`: without fields that are at their defaults."""
    if config is None:
        return None
    return {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default}


# Which generations may start a kernel before its predecessor ends (programmatic dependent launch).
PDL: dict[Capability, bool] = {(9, 0): True, (10, 0): True}

# Weights with more elements than this and no measurement are left to cuBLAS, which reads them as fast.
SKINNY_ELEMENTS = 1 << 23

# Tokens up to which a linear layer without a measurement uses our kernel, then cuBLAS.
SKINNY_TOKENS: dict[Capability, int] = {(8, 0): 32, (8, 9): 32, (9, 0): 64, (10, 0): 32}

# Tokens up to which the norm before a projection is computed inside it.
FUSED_NORM_TOKENS: dict[Capability, int] = {(8, 0): 1, (8, 9): 1, (9, 0): 1, (10, 0): 1}

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


def skinny(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Skinny | None:
    """Configuration for a few tokens, None where the library's product is the better choice."""
    measured = table(cap).skinny
    for most in TOKEN_STEPS:
        if tokens <= most and (most, n, k, gated) in measured:
            return measured[most, n, k, gated]
    if tokens > SKINNY_TOKENS.get(cap, 0) or n * k * (2 if gated else 1) > SKINNY_ELEMENTS:
        return None
    return skinny_rule(tokens, n, k, gated, MULTIPROCESSORS.get(cap, 132))


def middle(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Wide | None:
    """Configuration for a weight [N, K] (or [2N, K]) and any number of tokens, None for the library's product."""
    measured = table(cap).middle
    if not measured:
        return None
    for most in MIDDLE_STEPS:
        if tokens <= most and (most, n, k, gated) in measured:
            return measured[most, n, k, gated]
    return None


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a CUDA device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def paged_decode(cap: Capability, head_dim: int) -> PagedDecode:
    """For the smallest listed head size that is at least this one."""
    sizes = table(cap).decode
    return sizes[min(n for n in sizes if n >= head_dim)]


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
