"""Kernel configurations: measured ones by GPU generation and shape, those of rules.py where none was measured.

What was measured is in tables/*.json (see table.py); nothing tunes itself at start, `headrace bench kernels --tune`
does. Capabilities are (major, minor) as CUDA counts them; sizes are elements; K inputs, N outputs of a linear layer
(per half where gate and up are computed together).
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from headrace.base.errors import Refused
from headrace.kernels import rules
from headrace.kernels import table as files
from headrace.kernels.choices import (
    Blas,
    Choice,
    Gemv,
    Gemv8,
    Int4Few,
    Int4One,
    Int4Tile,
    PagedDecode,
    PagedFew,
    PagedPrefill,
    Ring,
    Skinny,
    Wide,
)
from headrace.kernels.rules import MULTIPROCESSORS, Capability


@dataclass(frozen=True, slots=True)
class Table:
    """What was measured on one generation, for which cases. None stands for the library's product as it chooses it.

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
    middle: dict[tuple[int, int, int, bool], Wide | Blas | None]
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
        {_case(r): r["use"] and _middle(r["use"]) for r in rows["middle"]},
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


def _middle(use: dict[str, Any]) -> Wide | Blas:
    return (Blas if "algorithm" in use else Wide)(**use)


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

# Versions of Triton whose Gluon our kernels in it are compiled with; others get the plain kernels.
GLUON = ((3, 6), (3, 7), (3, 8))

TOKEN_STEPS = (16, 32, 64)
MIDDLE_STEPS = (64, 96, 128, 160, 192, 224, 256, 384, 512, 640, 768, 896, 1024, 2048, 4096, MANY)


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


def gemv(cap: Capability, n: int, k: int, gated: bool = False) -> Gemv:
    """Configuration for one token times a weight [N, K] (or [2N, K] where gated)."""
    found = table(cap).gemv.get((n, k, gated))
    return found or rules.gemv_rule(n, k, gated, MULTIPROCESSORS.get(cap, 132))


def rings(cap: Capability) -> bool:
    """Whether gpu/ring.py can be compiled for this generation by this Triton."""
    return cap == (9, 0) and gluon()


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
    return rules.few_rule(cap, tokens, n, k, gated, rings(cap))


def middle(cap: Capability, tokens: int, n: int, k: int, gated: bool = False) -> Wide | Blas | None:
    """Configuration for a weight [N, K] (or [2N, K]) and any number of tokens, None for the library's own choice."""
    measured = table(cap).middle
    if not measured:
        return None
    for most in MIDDLE_STEPS:
        if tokens <= most and (most, n, k, gated) in measured:
            return measured[most, n, k, gated]
    return None


INT4_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
INT4_FETCHED: dict[Capability, tuple[int, int]] = {(9, 0): (2, MANY)}
"""Least and most tokens for gpu/w4a16_wide.py, where it takes a layer."""


def fetches4(cap: Capability, tokens: int) -> bool:
    """Whether gpu/w4a16_wide.py comes first for this many tokens, whatever the table says."""
    least, most = INT4_FETCHED.get(cap, (1, 0))
    return least <= tokens <= most and gluon()


def int4(
    cap: Capability, tokens: int, n: int, k: int, gated: bool = False
) -> Int4One | Int4Few | Int4Tile | None:
    """Configuration for a 4-bit weight [N, K] (or [2N, K]), None where it should be unpacked; never for one token."""
    measured = table(cap).int4
    for most in INT4_STEPS:
        if tokens <= most and (most, n, k, gated) in measured and (tokens == 1) == (most == 1):
            return measured[most, n, k, gated]
    return rules.int4_rule(cap, tokens, n, k, gated)


def gemv8(cap: Capability, n: int, k: int, gated: bool = False) -> Gemv8:
    """Configuration for one token times 8-bit weights [N, K] (or [2N, K] where gated)."""
    return table(cap).gemv8.get((n, k, gated)) or rules.gemv8_rule(k)


def skinny8(cap: Capability, tokens: int, n: int, k: int) -> Skinny:
    """Configuration for up to 64 tokens times 8-bit weights [N, K]."""
    measured = table(cap).skinny8
    for most in TOKEN_STEPS:
        if tokens <= most and (most, n, k) in measured:
            return measured[most, n, k]
    return rules.skinny8_rule(tokens, n, k, MULTIPROCESSORS.get(cap, 132))


RING8 = range(2, 65)
"""Tokens for which gpu/ring.py takes a layer in 8 bits."""


def fetches8(cap: Capability, tokens: int) -> bool:
    """Whether gpu/ring.py comes first for this many tokens, whatever the table says."""
    return tokens in RING8 and rings(cap)


def wide8(cap: Capability, tokens: int, n: int, k: int, kind: str) -> Wide | None:
    """Configuration for any number of tokens times 8-bit weights; None stands for the library's product of fp8."""
    measured = table(cap).wide8
    for most in MIDDLE_STEPS:
        if tokens <= most and (most, n, k, kind) in measured:
            return measured[most, n, k, kind]
    return None if kind == "fp8" else rules.wide8_rule(tokens)


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


def paged_prefill(cap: Capability, head_dim: int, queries: int = MANY, keys: int = MANY) -> PagedPrefill:
    """As paged_decode; `queries` and `keys` are those of a step's prompt rows, on average."""
    sizes = table(cap).prefill
    steps = sizes[min(n for n in sizes if n >= head_dim)]
    return next(config for most, config in steps.items() if queries <= most[0] and keys <= most[1])
