"""Which configurations of linear layers and attention are fastest on this GPU: candidates, timing, rows of a table."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from triton.runtime.errors import OutOfResources

from headrace.base.errors import UnknownName
from headrace.bench import kernels_attention as attention
from headrace.bench import kernels_eight as eight
from headrace.bench import kernels_int4 as int4
from headrace.bench import kernels_linear as linear
from headrace.bench.kernels import Say, pool
from headrace.bench.kernels_attention import Work
from headrace.bench.kernels_case import Launch, Layer, Sizes, Way
from headrace.bench.kernels_layer import Block, Candidate, Config
from headrace.bench.kernels_layer import tune as tune_block
from headrace.bench.replay import Limits, copies_of, replay
from headrace.bench.replay import limits as measure_limits
from headrace.bench.result import versions
from headrace.kernels import configs, table
from headrace.kernels.choices import (
    Blas,
    Choice,
    Gemv,
    PagedDecode,
    PagedFew,
    PagedPrefill,
    Ring,
    Skinny,
    Wide,
)
from headrace.kernels.configs import MANY
from headrace.kernels.gpu import blas
from headrace.kernels.launch import power_of_two

TUNED = ("linear", "linear8", "linear4", "decode", "prefill")
SKINNY_TOKENS = (16, 32, 64)
MIDDLE_TOKENS = configs.MIDDLE_STEPS[1:]  # `skinny` goes as far as the first
WIDE8_TOKENS = (128, 256, 512, MANY)
HEAD_TOKENS = 1024  # as many rows as a step may sample for
LONG = 8192  # tokens that stand for MANY
BETTER = 0.98  # ours must take less than this part of the library's time

WIDE = (
    Wide(128, 256, 64, 8, 4), Wide(256, 128, 64, 8, 4), Wide(128, 128, 64, 8, 3, 2), Wide(128, 128, 128, 8, 3),
    Wide(64, 256, 64, 4, 4), Wide(64, 128, 64, 4, 4, 2), Wide(64, 128, 128, 4, 4),
)  # fmt: skip
DECODES = (
    PagedDecode(1, 3, 8, 64), PagedDecode(1, 4, 8, 64), PagedDecode(1, 4, 4, 64), PagedDecode(1, 4, 12, 64),
    PagedDecode(1, 6, 8, 64), PagedDecode(1, 4, 8, 128), PagedDecode(2, 3, 4, 64), PagedDecode(2, 4, 2, 256),
    PagedDecode(4, 3, 2, 128), PagedDecode(4, 4, 2, 256),
)  # fmt: skip
FEWS = (
    PagedFew(64, 8, 1, 64), PagedFew(64, 4, 2, 64), PagedFew(32, 4, 2, 64), PagedFew(32, 4, 2, 32),
    PagedFew(128, 8, 1, 128),
)  # fmt: skip
PREFILLS = (
    PagedPrefill(128, 128, 8, 2), PagedPrefill(128, 128, 8, 3), PagedPrefill(128, 64, 8, 3),
    PagedPrefill(64, 64, 4, 3), PagedPrefill(64, 64, 4, 2, 168), PagedPrefill(64, 32, 4, 3),
    PagedPrefill(128, 32, 8, 3, 128), PagedPrefill(128, 64, 8, 2, 128), PagedPrefill(128, 64, 8, 2),
    PagedPrefill(64, 32, 4, 2), PagedPrefill(32, 16, 4, 2), PagedPrefill(128, 128, 8, 3, fetched=True),
)  # fmt: skip
PROMPTS = ((16, MANY), (MANY, 2048), (MANY, MANY))


Row = tuple[tuple[str, int | bool | str | None], ...]
"""What a row of the table is for, as (name, value)."""


class Trial(NamedTuple):
    """One candidate for one row of the table, on one piece of work: `make(copies, device)` as a Case's.

    config None is the library.
    """

    kind: str
    row: Row
    config: Choice | None
    bytes: float
    make: Callable[[int, torch.device], Launch]
    floor_us: float = 1.0


# -- candidates -------------------------------------------------------------------------------------------------


def gemvs(layer: Layer) -> Iterator[Gemv]:
    """Tiles of 16 to 64 weights per thread, whole rows at once or in chunks."""
    halves, whole = 2 if layer.gated else 1, power_of_two(layer.k)
    for chunk in sorted({whole, min(2048, whole), 1024 if layer.k <= 3072 else whole}):
        for warps in (4, 8) if chunk < 4096 else (4, 8, 16):
            for each in (16, 32, 64):
                rows = each * 32 * warps // chunk // halves
                if 1 <= rows <= 16 and layer.n // rows >= 200:
                    yield Gemv(rows, chunk, warps)


def skinnies(layer: Layer, tokens: int) -> Iterator[Skinny]:
    """Tiles and splits that give the chip between one program per multiprocessor and a few waves of them."""
    shapes = [(16, 256, 4), (32, 128, 5), (32, 256, 4), (64, 128, 4)]
    if tokens > 32:
        shapes = [(32, 128, 4), (64, 128, 3), (64, 64, 5), (128, 64, 4)]
    for n, k, stages in shapes:
        for split in (1, 2, 4, 8):
            programs = -(-layer.rows // n) * split
            if layer.k // split >= 2 * k and (100 <= programs <= 800 or (split == 1 and programs > 800)):
                yield Skinny(n, k, split, 4, stages)


def rings(layer: Layer, tokens: int, processors: int) -> Iterator[Ring]:
    """Tiles cut into parts for a quarter of the processors or more, until all of them have some."""
    for rows in (256,) if layer.gated else (128, 256):
        tiles, parts = -(-layer.rows // rows), 1
        while True:
            if 4 * tiles * parts >= processors:
                yield Ring(rows, tokens, parts)
            if tiles * parts >= processors:
                break
            parts *= 2


def wides(tokens: int) -> Iterator[Wide]:
    """Tiles no taller than the tokens ask for, of very many the large ones."""
    for tile in WIDE:
        if tile.m <= max(64, 1 << (tokens - 1).bit_length()) and (
            tokens < 2048 or tile.m * tile.n >= 128 * 256
        ):
            yield tile


# -- trials -----------------------------------------------------------------------------------------------------


def layer_row(layer: Layer) -> Row:
    """What a row is for that serves one layer."""
    return ("n", layer.n), ("k", layer.k), ("gated", layer.gated)


def fews(layer: Layer, tokens: int, device: torch.device) -> Iterator[Skinny | Ring | Wide | Blas | None]:
    """All for a few tokens, None the library; what is for many where a table's `middle` begins."""
    cap, processors = configs.capability(device), attention.multiprocessors(device)
    yield None
    yield from skinnies(layer, tokens)
    if fetched(layer) and configs.rings(cap):
        yield from rings(layer, tokens, processors)
    if fetched(layer) and cap >= (9, 0) and tokens == SKINNY_TOKENS[-1]:
        yield from wides(tokens)
        yield from algorithms(layer, tokens, device)


def algorithms(layer: Layer, tokens: int, device: torch.device) -> list[Blas]:
    """Those of the library: what it proposes for any number of tokens."""
    others = [min(other, LONG) for other in MIDDLE_TOKENS]
    size = tokens, others, layer.rows, layer.k
    return blas.candidates(*size, torch.bfloat16, linear.wide(layer), device.index or 0)


def fetched(layer: Layer) -> bool:
    """Whether TMA can read its rows."""
    return layer.k % 8 == 0


def linear_trials(layer: Layer, device: torch.device) -> Iterator[Trial]:
    """Many tokens; of the head, which is in no block, one and a few, too. The library is among all but of one token."""
    row, head = layer_row(layer), layer.name == "head"
    for config in gemvs(layer) if head else ():
        yield Trial("gemv", row, config, layer.bytes, partial(linear.trial, layer, 1, config))
    for most in SKINNY_TOKENS if head else ():
        for few in fews(layer, most, device):
            make = partial(linear.trial, layer, most, few)
            yield Trial("skinny", (("tokens", most), *row), few, layer.bytes, make)
    for most in MIDDLE_TOKENS if fetched(layer) and configs.capability(device) >= (9, 0) else ():
        tokens = min(most, LONG)
        if head and tokens > HEAD_TOKENS:
            continue
        for many in (None, *wides(tokens), *algorithms(layer, tokens, device)):
            make = partial(linear.trial, layer, tokens, many)
            yield Trial("middle", (("tokens", said(most)), *row), many, layer.bytes, make)


def candidates(kernels: Sequence[str], sizes: Sizes, device: torch.device) -> Iterator[Candidate]:
    """Of a block's products for few tokens, which are chosen inside it."""
    one, eights = Block(sizes, 1), Block(sizes, 1, True)
    for name, layer in one.layers.items():
        if "linear" in kernels:
            yield from (Candidate(one, name, config) for config in gemvs(layer))
            for most in SKINNY_TOKENS:
                yield from (Candidate(Block(sizes, most), name, few) for few in fews(layer, most, device))
        if "linear8" in kernels:
            yield from (Candidate(eights, name, config) for config in eight.gemvs(layer))


def eight_trials(layer: Layer, device: torch.device) -> Iterator[Trial]:
    """More than one token of weights in 8 bits: the library is a candidate for many tokens of floats."""
    shape, moved = (("n", layer.rows), ("k", layer.k)), layer.rows * layer.k
    if configs.capability(device) < (9, 0) or layer.k % 16:
        return
    for most in SKINNY_TOKENS:
        for few in eight.skinnies(layer):
            make = partial(eight.trial, layer, most, "fp8", few)
            yield Trial("skinny8", (("tokens", most), *shape), few, moved, make)
    for kind in eight.KINDS:
        for most in WIDE8_TOKENS:
            row = (("tokens", said(most)), *shape, ("kind", kind))
            for many in (*(() if kind == "int8" else (None,)), *eight.WIDE):
                yield Trial(
                    "wide8", row, many, moved, partial(eight.trial, layer, min(most, LONG), kind, many)
                )


def int4_trials(layer: Layer, device: torch.device) -> Iterator[Trial]:
    """As linear_trials for weights in 4 bits; None stands for unpacking them."""
    row, cap = layer_row(layer), configs.capability(device)
    for most in int4.TOKEN_STEPS:
        if configs.fetches4(cap, most):
            continue
        for config in int4.candidates(layer, most):
            make = partial(int4.trial, layer, most, config)
            yield Trial("int4", (("tokens", most), *row), config, int4.moved(layer), make)


def attention_trials(
    sizes: Sizes, kernels: Sequence[str], limits: Limits, device: torch.device
) -> Iterator[Trial]:
    """Every candidate on every piece of work that its row of the table would serve."""
    way = Way()
    for work in attention.DECODES if "decode" in kernels else ():
        few = len(work.rows) * sizes.kv_heads <= attention.FEW_PAIRS
        make = attention.decode_after_store if few else attention.decode
        for config in DECODES:
            moved = work.bytes(sizes, way.kv)
            made = partial(make, work, sizes, way, config=config)
            yield Trial(
                "decode", (("head_dim", sizes.head_dim),), config, moved, made, limits.floor_us(moved)
            )
    yield from few_trials(sizes, limits) if "decode" in kernels else ()
    for most, work in served_prompts() if "prefill" in kernels else ():
        row = (("head_dim", sizes.head_dim), ("queries", said(most[0])), ("keys", said(most[1])))
        for config in PREFILLS:
            moved, operations = work.bytes(sizes, way.kv), work.operations(sizes)
            made = partial(attention.prefill, work, sizes, way, config=config)
            yield Trial("prefill", row, config, moved, made, limits.floor_us(moved, operations))


def few_trials(sizes: Sizes, limits: Limits) -> Iterator[Trial]:
    """Attention of few rows in one launch with what comes before it; None is the two launches. Between products, as
    launches that wait for each other take other times than alone."""
    way = Way()
    for work in attention.FEWS:
        row = ("head_dim", sizes.head_dim), ("rows", len(work.rows))
        moved = attention.layer_bytes(work, sizes, way)
        two = partial(attention.decode_after_store, work, sizes, way)
        for config in (None, *FEWS):
            make = two if config is None else partial(attention.few, work, sizes, way, config=config)
            made = partial(attention.between_products, make, work, sizes)
            yield Trial("few", row, config, moved, made, limits.floor_us(moved))


def served_prompts() -> Iterator[tuple[tuple[int, int], Work]]:
    """Works with the row of the table that serves them: queries and keys at most, on average."""
    for work in attention.PREFILLS:
        queries, keys = work.means
        yield next(most for most in PROMPTS if queries <= most[0] and keys <= most[1]), work


def said(most: int) -> int | None:
    """As files say it."""
    return None if most == MANY else most


# -- choice -----------------------------------------------------------------------------------------------------


def choose(timed: Sequence[tuple[Trial, float]]) -> table.Rows:
    """For every row of the table the candidate that took least, summed over its works in units of their floors.

    Candidates that did not run on all works of a row are out; ours must beat the library clearly.
    """
    costs: dict[tuple[str, Row], dict[Choice | None, list[float]]] = {}
    for trial, us in timed:
        handicap = BETTER if trial.config is None else 1.0
        by_config = costs.setdefault((trial.kind, trial.row), {})
        by_config.setdefault(trial.config, []).append(us / trial.floor_us * handicap)
    best: dict[tuple[str, Row], tuple[float, Choice | None]] = {}
    for case, by_config in costs.items():
        works = max(map(len, by_config.values()))
        whole = {config: sum(each) for config, each in by_config.items() if len(each) == works}
        config = min(whole, key=lambda config: whole[config])
        best[case] = whole[config], config
    rows: table.Rows = {}
    for (kind, row), (_, config) in best.items():
        add(rows, kind, row, config)
    return rows


def add(rows: table.Rows, kind: str, row: Row, config: Choice | None) -> None:
    """As a table says it: `skinny` stands before `middle`, and leaves to it what is for many tokens."""
    left = kind == "skinny" and isinstance(config, Wide | Blas)
    rows.setdefault(kind, []).append({**dict(row), "use": configs.brief(None if left else config)})
    if kind == "skinny" and ("tokens", SKINNY_TOKENS[-1]) in row:
        rows.setdefault("middle", []).append({**dict(row), "use": configs.brief(config if left else None)})


def trials(kernels: Sequence[str], shapes: Sequence[str], limits: Limits) -> list[Trial]:
    """All candidates for what these models need; layers and attention that they share are there once."""
    device = torch.device("cuda")
    sizes = [Sizes.of(shape) for shape in shapes]
    found: list[Trial] = []
    for kernel, layers_of, trials_of in (
        ("linear", lambda one: one.layers, linear_trials),
        ("linear8", lambda one: one.layers[:-1], eight_trials),
        ("linear4", int4.layers, int4_trials),
    ):
        if kernel in kernels:
            layers = {(y.n, y.k, y.gated): y for one in sizes for y in layers_of(one)}
            found += [trial for layer in layers.values() for trial in trials_of(layer, device)]
    by_head = {one.head_dim: one for one in sizes}
    for one in by_head.values():
        found += attention_trials(one, kernels, limits, device)
    return found


def in_blocks(found: Sequence[Candidate], say: Say) -> table.Rows:
    """What is fastest in each block. Where models share a product, the row of the later one is what a table keeps."""
    by_block: dict[Block, dict[str, list[Config]]] = {}
    for block, name, config in found:
        by_block.setdefault(block, {}).setdefault(name, []).append(config)
    rows: table.Rows = {}
    for block, by_name in by_block.items():
        for name, config in tune_block(block, by_name, say).items():
            row = layer_row(block.layers[name])
            if block.tokens == 1:
                add(rows, "gemv8" if block.eight else "gemv", row, config)
            else:
                add(rows, "skinny", (("tokens", block.tokens), *row), config)
    return rows


def _runs(made: Trial | Candidate) -> bool:
    """Compile one candidate into Triton's cache by running it once; False where this GPU is too small for it."""
    try:
        made.make(1, torch.device("cuda")).calls[0]()
        torch.cuda.synchronize()
    except OutOfResources:
        return False
    torch.cuda.empty_cache()
    return True


def compiled(made: Sequence[Trial | Candidate]) -> list[Trial | Candidate]:
    """Those that run here; several processes compile what is ours."""
    with pool() as processes:
        jobs = [
            None if isinstance(each.config, Blas | None) else processes.submit(_runs, each) for each in made
        ]
        return [each for each, job in zip(made, jobs, strict=True) if job is None or job.result()]


@torch.inference_mode()
def tune(kernels: Sequence[str], shapes: Sequence[str], path: Path | None, say: Say) -> Path:
    """Time all candidates and write the table; where to. What the file said of other rows stays.

    Raises UnknownName for a kernel that is not tuned or a shape that is not known.
    """
    for kernel in kernels:
        if kernel not in TUNED:
            raise UnknownName.among("tuned kernel", kernel, list(TUNED), param="kernel")
    device, limits = torch.device("cuda"), measure_limits()
    path = path or table.own(configs.capability(device))
    alone, before = trials(kernels, shapes, limits), table.read(path)
    inside = [each for shape in shapes for each in candidates(kernels, Sizes.of(shape), device)]
    say(f"compiling {len(alone) + len(inside)} candidates")
    ready = compiled((*alone, *inside))
    timed: list[tuple[Trial, float]] = []
    for trial in (each for each in ready if isinstance(each, Trial)):
        took = replay(trial.make(copies_of(trial.bytes), device).calls, repeats=5, target_ms=2.0)
        timed.append((trial, took.us))
        say(f"{trial.kind} {dict(trial.row)} {configs.brief(trial.config)}: {took.us:.1f} us")
    about = {"gpu": torch.cuda.get_device_name(), **versions("headrace", "torch", "triton")}
    chosen = in_blocks([each for each in ready if isinstance(each, Candidate)], say)
    table.write(path, table.merged(before, table.merged(choose(timed), chosen)), about)
    return path
