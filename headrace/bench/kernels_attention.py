"""Cases of attention over pages: decoding and prompt rows, alike and of all lengths."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headrace.bench.kernels_case import Case, Launch, Sizes, Way, draw, error
from headrace.bench.kernels_linear import moved as product_bytes
from headrace.bench.kernels_linear import product
from headrace.bench.kernels_rows import rotate, rotated_bytes
from headrace.bench.replay import Call
from headrace.kernels import configs, rules
from headrace.kernels.choices import PagedDecode, PagedFew, PagedPrefill
from headrace.kernels.gpu import paged_decode, paged_few, paged_fixed, paged_prefill
from headrace.kernels.paged import Pages, Scores, attend, cells_of, prefill_work
from headrace.kernels.rotate import rotate_store_ref

KERNELS = ("decode", "prefill")
BLOCK = 16
BUNCH = 256  # queries that the definition takes at a time, so that its scores fit
FEW_PAIRS = 264  # (row, kv head) pairs up to which decoding is latency rather than bytes

Attend = Callable[[Tensor, Pages, Scores, Tensor], None]
"""A launch: queries, pages, scores, and where the output goes."""


@dataclass(frozen=True, slots=True)
class Work:
    """Rows as (queries, keys) and what they are called in the table."""

    name: str
    rows: tuple[tuple[int, int], ...]

    def bytes(self, sizes: Sizes, kv: torch.dtype) -> int:
        """What must be read and written: keys and values once, queries and output once."""
        one = sizes.kv_heads * sizes.head_dim * 2 * kv.itemsize
        return sum(keys * one + queries * sizes.heads * sizes.head_dim * 4 for queries, keys in self.rows)

    def operations(self, sizes: Sizes) -> int:
        """Of the two products, over the scores that causality leaves."""
        pairs = sum(queries * keys - queries * (queries - 1) // 2 for queries, keys in self.rows)
        return 4 * pairs * sizes.heads * sizes.head_dim

    @property
    def means(self) -> tuple[int, int]:
        """Queries and keys of a row, on average."""
        queries, keys = (sum(column) // len(self.rows) for column in zip(*self.rows, strict=True))
        return queries, keys

    @property
    def even(self) -> bool:
        """Whether plain attention over contiguous keys computes the same: equal rows, one query or all of them."""
        queries, keys = self.rows[0]
        return len(set(self.rows)) == 1 and queries in (1, keys)


def alike(batch: int, keys: int, queries: int = 1) -> Work:
    """`batch` equal rows."""
    name = f"{batch} x {keys}" if queries == 1 else f"{batch} x {queries} of {keys}"
    return Work(name, ((queries, keys),) * batch)


def ragged(batch: int, least: int, most: int) -> Work:
    """Rows of evenly drawn lengths."""
    keys = np.random.default_rng(0).integers(least, most, batch).tolist()
    return Work(f"{batch} x {least}-{most}", tuple((1, n) for n in keys))


def with_one(batch: int, keys: int, longest: int) -> Work:
    """Equal rows but for one that is much longer."""
    return Work(f"{batch} x {keys}, 1 x {longest}", ((1, keys),) * batch + ((1, longest),))


DECODES = (
    alike(1, 140), alike(1, 300), alike(1, 700), alike(1, 2048), alike(1, 16384), alike(1, 131072), alike(4, 500),
    alike(8, 2048), with_one(7, 300, 32768), alike(32, 384), ragged(32, 100, 2048), alike(256, 192),
    ragged(256, 100, 2048), alike(512, 1024), with_one(255, 300, 32768),
)  # fmt: skip
FEWS = tuple(alike(batch, keys) for batch in (1, 4, 16) for keys in (300, 2048))
FEW = PagedFew(64, 8, 1, 64)
"""For one launch where the tables have two."""
PREFILLS = (
    alike(4, 4096, 4096), alike(4, 2048, 2048), alike(1, 8192, 8192), alike(16, 512, 512), alike(64, 128, 128),
    alike(1, 32768, 2048), alike(32, 1024, 8),
)  # fmt: skip


def cases(sizes: Sizes, way: Way) -> Iterator[Case]:
    """All rows of both kernels for a model; decoding of few rows also as it follows the KV store in a layer, and with
    that in one launch, which deterministic engines never do."""
    for work in DECODES:
        moved, operations = work.bytes(sizes, way.kv), work.operations(sizes)
        yield Case("decode", work.name, moved, partial(decode, work, sizes, way), operations)
        if len(work.rows) * sizes.kv_heads <= FEW_PAIRS:
            moved += rotated_bytes(len(work.rows), sizes, way)
            make = partial(decode_after_store, work, sizes, way)
            yield Case("decode", f"{work.name} after rotate", moved, make, operations)
    for work in () if way.fixed else FEWS:
        moved, make = few_bytes(work, sizes, way), partial(few, work, sizes, way)
        yield Case("decode", f"{work.name} in one launch", moved, make, work.operations(sizes))
    for work in PREFILLS:
        make = partial(prefill, work, sizes, way)
        yield Case("prefill", work.name, work.bytes(sizes, way.kv), make, work.operations(sizes))


def pages_of(work: Work, sizes: Sizes, copies: int, device: torch.device, kv: torch.dtype) -> list[Pages]:
    """The same rows over different blocks, in random order, of one cache of random numbers."""
    counts = [-(-keys // BLOCK) for _, keys in work.rows]
    blocks = sum(counts) * copies
    shape = (blocks + 1, BLOCK, sizes.kv_heads, sizes.head_dim)
    k, v = (torch.empty(shape, dtype=torch.bfloat16, device=device).normal_().to(kv) for _ in "kv")
    order = torch.from_numpy(np.random.default_rng(0).permutation(blocks).astype(np.int32) + 1)
    starts = torch.from_numpy(np.cumsum([0] + [queries for queries, _ in work.rows]).astype(np.int32))
    context = torch.tensor([keys for _, keys in work.rows], dtype=torch.int32)
    made = []
    for part in order.split(sum(counts)):
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, own in enumerate(part.split(counts)):
            table[row, : len(own)] = own
        made.append(Pages(k, v, table.to(device), starts.to(device), context.to(device)))
    return made


def definition(q: Tensor, pages: Pages, scores: Scores) -> Tensor:
    """In float32, a bunch of queries at a time."""
    out = torch.empty(q.shape, device=q.device)
    starts = pages.starts.tolist()
    for row, keys in enumerate(pages.context.tolist()):
        place = torch.arange(keys, device=q.device)
        slots = pages.table[row].long()[place // BLOCK] * BLOCK + place % BLOCK
        k, v = (cells_of(cache, slots).float() for cache in (pages.k, pages.v))
        for a in range(starts[row], starts[row + 1], BUNCH):
            b = min(a + BUNCH, starts[row + 1])
            seen = keys - (starts[row + 1] - b)
            out[a:b] = attend(q[a:b], k[:seen], v[:seen], scores)
    return out


def decode(
    work: Work, sizes: Sizes, way: Way, copies: int, device: torch.device, config: PagedDecode | None = None
) -> Launch:
    """As the back end launches it, with the tables' configuration or another."""
    workspace = paged_decode.Workspace(device)
    kernel, used = paged_decode.decode, config
    if way.fixed:
        kernel, used = paged_fixed.decode, rules.paged_fixed(sizes.head_dim)
    elif used is None:
        used = configs.paged_decode(configs.capability(device), sizes.head_dim)
    programs = multiprocessors(device) * used.programs
    launch = partial(kernel, workspace=workspace, config=used, programs=programs)
    return attention(work, sizes, way, copies, device, launch)


def decode_after_store(
    work: Work, sizes: Sizes, way: Way, copies: int, device: torch.device, config: PagedDecode | None = None
) -> Launch:
    """With the launch before it, which it may overlap."""
    stores = rotate(len(work.rows), sizes, way, copies, device)
    attends = decode(work, sizes, way, copies, device, config)
    return Launch(
        [partial(_in_turn, *calls) for calls in zip(stores.calls, attends.calls, strict=True)],
        lambda: max(stores.check(), attends.check()),
    )


def _in_turn(*calls: Call) -> None:
    for call in calls:
        call()


def few_bytes(work: Work, sizes: Sizes, way: Way) -> int:
    """What one launch, or two, must move from the projection to attention's output."""
    return work.bytes(sizes, way.kv) + rotated_bytes(len(work.rows), sizes, way)


def few(
    work: Work, sizes: Sizes, way: Way, copies: int, device: torch.device, config: PagedFew | None = None
) -> Launch:
    """QK-norm where the model has one, RoPE, KV store and attention in one launch."""
    rows, size, heads = len(work.rows), sizes.head_dim, (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    used = config or configs.paged_few(configs.capability(device), size, rows) or FEW
    pages, scores = pages_of(work, sizes, copies, device, way.kv), Scores(size**-0.5)
    angle = torch.rand(int(pages[0].context.max()), size // 2, device=device) * 7
    table = torch.cat([angle.cos(), angle.sin()], -1)
    gain = draw(size, device=device) if sizes.qk_norm else None
    q, k, v = draw(rows, sum(heads), size, device=device).split(heads, 1)
    new = paged_few.New(q, k, v, table, gain, gain, 1e-6, 0.0)
    workspace, programs = paged_decode.Workspace(device), multiprocessors(device) * used.programs

    def launch(pages: Pages, out: Tensor) -> None:
        paged_few.attend_new(new, pages, scores, out, workspace, config=used, programs=programs)

    def check() -> float:
        ours, kept = pages[0], pages[0]._replace(k=pages[0].k.clone(), v=pages[0].v.clone())
        one, two = (torch.full(q.shape, float("nan"), dtype=q.dtype, device=device) for _ in "12")
        launch(ours, one)
        launch(ours, two)
        if not torch.equal(one, two):
            return float("nan")
        place = kept.context.long() - 1
        slots = kept.table.long().gather(1, place[:, None] // BLOCK)[:, 0] * BLOCK + place % BLOCK
        turned = rotate_store_ref(q, k, v, place, table, gain, gain, 1e-6, 0.0, kept.k, kept.v, slots)
        rounding = 0.1 if way.kv.itemsize == 1 else 1.0  # 8 bits leave about 2.6%
        pairs = ((ours.k, kept.k), (ours.v, kept.v))
        stored = (error(*(cells_of(cache, slots).float() for cache in pair)) * rounding for pair in pairs)
        return max(error(one, definition(turned, kept, scores)), *stored)

    out = torch.empty(q.shape, dtype=q.dtype, device=device)
    return Launch([partial(launch, each, out) for each in pages], check)


def layer_bytes(work: Work, sizes: Sizes, way: Way) -> int:
    """Of `between_products`."""
    weights = sum(product_bytes(layer, len(work.rows)) for layer in sizes.layers[:2])
    return few_bytes(work, sizes, way) + weights


def between_products(
    make: Callable[[int, torch.device], Launch], work: Work, sizes: Sizes, copies: int, device: torch.device
) -> Launch:
    """With the products before and after it in a layer, which it may overlap."""
    before, after = (product(layer, len(work.rows), False, copies, device) for layer in sizes.layers[:2])
    inner = make(copies, device)
    calls = zip(before.calls, inner.calls, after.calls, strict=True)
    return Launch([partial(_in_turn, *each) for each in calls], inner.check)


def prefill(
    work: Work, sizes: Sizes, way: Way, copies: int, device: torch.device, config: PagedPrefill | None = None
) -> Launch:
    """As the back end launches it, with the tables' configuration or another, and its list of work."""
    config = config or configs.paged_prefill(configs.capability(device), sizes.head_dim, *work.means)
    used = rules.paged_fixed(sizes.head_dim) if way.fixed else config
    starts = np.cumsum([0] + [queries for queries, _ in work.rows])
    keys = np.array([keys for _, keys in work.rows])
    listed = prefill_work(starts, keys, used.rows // (sizes.heads // sizes.kv_heads), least=1)
    kernel = paged_fixed.prefill if way.fixed else paged_prefill.prefill
    launch = partial(kernel, work_W2=torch.from_numpy(listed).to(device), config=used)
    return attention(work, sizes, way, copies, device, launch)


def multiprocessors(device: torch.device) -> int:
    """A few in Triton's interpreter."""
    return configs.multiprocessors(device) if device.type == "cuda" else 4


def attention(
    work: Work, sizes: Sizes, way: Way, copies: int, device: torch.device, launch: Attend
) -> Launch:
    """Launches over rotated pages, and SDPA over contiguous keys where it computes the same."""
    pages = pages_of(work, sizes, copies, device, way.kv)
    scores = Scores(sizes.head_dim**-0.5)
    q = draw(sum(queries for queries, _ in work.rows), sizes.heads, sizes.head_dim, device=device)
    out = torch.empty_like(q)

    def check() -> float:
        one, two = torch.full_like(q, float("nan")), torch.full_like(q, float("nan"))
        launch(q, pages[0], scores, one)
        launch(q, pages[0], scores, two)
        if not torch.equal(one, two):
            return float("nan")
        return error(one, definition(q, pages[0], scores))

    return Launch(
        [partial(launch, q, p, scores, out) for p in pages], check, contiguous(work, sizes, copies, q)
    )


def contiguous(work: Work, sizes: Sizes, copies: int, q: Tensor) -> list[Call]:
    """torch's own attention for rows that are even."""
    if not work.even:
        return []
    (queries, keys), batch = work.rows[0], len(work.rows)
    shape = (batch, sizes.kv_heads, keys, sizes.head_dim)
    q_BHTD = q.view(batch, queries, sizes.heads, sizes.head_dim).transpose(1, 2)
    made = [[torch.randn(shape, device=q.device, dtype=q.dtype) for _ in "kv"] for _ in range(copies)]
    attend_all = partial(scaled_dot_product_attention, is_causal=queries > 1, enable_gqa=True)
    return [partial(attend_all, q_BHTD, *kv) for kv in made]
