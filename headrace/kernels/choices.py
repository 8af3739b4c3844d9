"""What can be chosen of a kernel: one class per kernel; sizes are elements. Which is chosen when: configs.py."""

from dataclasses import dataclass


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

    n counts gate and up both where they are computed together.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    programs: int = 1


@dataclass(frozen=True, slots=True)
class Blas:
    """An algorithm of the library, in the numbers of its cublasLtMatmulAlgoConfigAttributes_t: see gpu/blas.py."""

    algorithm: int
    tile: int
    stages: int
    custom: int = 0
    swizzle: int = 0
    inner: int = 0
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class Gemv8:
    """One token, weights in 8 bits: `programs` per multiprocessor walk over the outputs.

    Each of `warps` takes a row of its own, or `split` of them share one. `ahead` more turns are asked for before the
    inputs are there.
    """

    warps: int
    split: int
    programs: int
    ahead: int = 1


@dataclass(frozen=True, slots=True)
class Ring:
    """A few tokens, weights in 8 or 16 bits, by a warp that fetches: tiles of 128 or 256 rows by 16 to 128 tokens.

    Tiles are cut along the inputs into about `parts` at most.
    """

    rows: int
    tokens: int
    parts: int


@dataclass(frozen=True, slots=True)
class Int4One:
    """4-bit weights, one token: `programs` per multiprocessor walk over the outputs, 16 at a time, 32 where gated.

    Each of `warps` holds the inputs of `tiles` (at most 8) times 64 columns; what all of them do not cover is split
    over programs. `ahead` more turns are asked for before the inputs are there.
    """

    warps: int
    tiles: int
    programs: int = 1
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Int4Few:
    """4-bit weights, up to 16 tokens: 16 outputs per program, 32 with `pair`; `chunk` inputs at a time for all warps.

    Chunks are fetched `stages` ahead where there are several. Gate and up computed together: 16 outputs of both.
    """

    chunk: int
    warps: int
    stages: int = 1
    pair: bool = False


@dataclass(frozen=True, slots=True)
class Int4Tile:
    """4-bit weights, more tokens: m tokens by n weight rows in steps of k, the inputs cut into `split` parts."""

    m: int
    n: int
    k: int
    split: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Int4Wide:
    """4-bit weights by a warp that fetches: tiles of 128 or 256 weight rows by 16 to 128 tokens, of 128 by 256."""

    rows: int
    tokens: int


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
class PagedFew:
    """Attention of few single queries and what comes before it in one launch: tiles of `keys`, one in registers ahead.

    A multiprocessor holds `programs`; rows are not cut into pieces of fewer than `split` keys.
    """

    keys: int
    warps: int
    programs: int
    split: int


@dataclass(frozen=True, slots=True)
class PagedPrefill:
    """Attention of many queries: `rows` (queries x heads of a group) against `keys` at a time.

    `registers` caps a thread's registers so that more programs fit on a multiprocessor, None leaves them free.
    `fetched`: by gpu/paged_prefill_hopper.py where that takes a model, with tiles of its own; the rest is for others.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    fetched: bool = False


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


Choice = (
    Gemv
    | Gemv8
    | Skinny
    | Ring
    | Wide
    | Blas
    | Int4One
    | Int4Few
    | Int4Tile
    | PagedDecode
    | PagedFew
    | PagedPrefill
)
"""What a table's rows may say."""
