"""Norm, rotation, the KV store and attention of few rows in one launch, against their definitions in turn."""

from typing import Any, NamedTuple

import pytest
import torch

from headrace.kernels import configs
from headrace.kernels.choices import PagedFew
from headrace.kernels.paged import Pages, Scores, paged_attention
from headrace.kernels.rotate import rotate_store_ref
from tests.kernels.closeness import assert_close
from tests.kernels.pages import draw, hide, scores
from tests.kernels.test_rotate import FP8, table_of

TINY = PagedFew(keys=16, warps=2, programs=2, split=16)
ROWS = [(1, 70), (1, 1), (1, 0), (1, 17)]


class Step(NamedTuple):
    """What the kernel gets; of rows that have a query and keys the token, its position and its place in the caches."""

    new: Any
    pages: Pages
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor


def made(
    rows: list[tuple[int, int]], shape: tuple[int, int, int], *, rotary: int | None = None, norm: bool = False,
    kept: torch.dtype | None = None, **options: Any,
) -> Step:  # fmt: skip
    """Rows of (queries, keys), their newest keys not in the caches yet; `rotary` 0: not rotated, None: all of D."""
    from headrace.kernels.gpu.paged_few import New

    heads, kv_heads, size = shape
    q, pages = draw(rows, shape, **{"dtype": torch.float32, **options})
    new = torch.cat([q, torch.randn(len(q), 2 * kv_heads, size).to(q)], 1).split(
        [heads, kv_heads, kv_heads], 1
    )
    weights = torch.randn(2, size).to(q) if norm else (None, None)
    table = None if rotary == 0 else table_of(max(keys for _, keys in rows), rotary or size).to(q.device)
    live, block = [row for row, (queries, keys) in enumerate(rows) if queries and keys], pages.k.shape[1]
    last = pages.context[live].long() - 1
    slots = pages.table[live].long().gather(1, last[:, None] // block)[:, 0] * block + last % block
    for cache in (pages.k, pages.v):
        cache.flatten(0, 1)[slots] = float("nan")
    if kept is not None:
        k, v = (x.nan_to_num().to(kept) for x in (pages.k, pages.v))
        pages = pages._replace(k=k, v=v, k_scale=0.5, v_scale=2.0)
    return Step(New(*new, table, *weights, 1e-6, 0.5), pages, pages.starts[live].long(), last, slots)


def expected(step: Step, rule: Scores) -> tuple[torch.Tensor, Pages]:
    """The output, and the pages afterwards."""
    new, pages, tokens, positions, slots = step
    pages = pages._replace(k=pages.k.clone(), v=pages.v.clone())
    q = torch.zeros_like(new.q_THD, memory_format=torch.contiguous_format)
    q[tokens] = rotate_store_ref(
        *(x[tokens] for x in new[:3]), positions, *new[3:], pages.k, pages.v, slots,
        k_scale=pages.k_scale, v_scale=pages.v_scale,
    )  # fmt: skip
    return paged_attention(q, pages, rule), pages


def run(step: Step, rule: Scores, config: PagedFew = TINY, programs: int = 2) -> torch.Tensor:
    """What the kernel writes, over poison; its counters must be back at zero."""
    from headrace.kernels.gpu.paged_decode import Workspace
    from headrace.kernels.gpu.paged_few import attend_new

    out = torch.full_like(step.new.q_THD, float("nan"), memory_format=torch.contiguous_format)
    workspace = Workspace(out.device)
    attend_new(step.new, step.pages, rule, out, workspace, config=config, programs=programs)
    assert not workspace.arrived.any()
    return out


def check(step: Step, rule: Scores, **options: Any) -> None:
    """Output and caches; nothing but the new slots of the caches has changed."""
    wanted, after = expected(step, rule)
    out = run(step, rule, **options)
    assert_close(out, wanted)
    for got, kept in ((step.pages.k, after.k), (step.pages.v, after.v)):
        cells, kept_cells = got.flatten(0, 1).float().clone(), kept.flatten(0, 1).float()
        assert_close(cells[step.slots], kept_cells[step.slots], 1e-6 if got.dtype == torch.float32 else 2e-3)
        cells[step.slots] = kept_cells[step.slots]
        assert torch.equal(cells.nan_to_num(nan=1e9), kept_cells.nan_to_num(nan=1e9))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("shape", "rotary"),
    [
        ((1, 1, 64), None),
        ((6, 2, 80), 40),
        ((8, 1, 96), None),
        ((9, 3, 64), 0),
        ((16, 1, 128), 64),
        ((2, 1, 256), None),
    ],
)
def test_shapes(device, shape, rotary, norm):
    check(made([(1, 40), (1, 1)], shape, rotary=rotary, norm=norm, device=device), scores(shape[2]))


def test_32_heads_of_a_group(device):
    check(made([(1, 40)], (32, 1, 16), norm=True, device=device), scores(16), config=PagedFew(32, 4, 1, 32))


@pytest.mark.parametrize("window", [1, 7, 16, 50, 1000])
def test_windows(device, window):
    step = made(ROWS, (2, 1, 32), device=device)
    hide(step.pages, window)
    check(step, scores(32, window=window))


def test_softcap(device):
    check(made(ROWS, (2, 1, 32), norm=True, device=device), scores(32, softcap=3.0, window=20))


@pytest.mark.parametrize("block", [32, 48, 64])
@pytest.mark.parametrize("config", [TINY, PagedFew(64, 4, 1, 64)], ids=str)
def test_blocks_and_tiles(device, block, config):
    check(made([(1, 150), (1, 64)], (2, 2, 16), block=block, device=device), scores(16), config=config)


@pytest.mark.parametrize("programs", [1, 40])
def test_a_few_rows_in_many_pieces(device, programs):
    check(made([(1, 700), (1, 9)], (3, 1, 24), device=device), scores(24), programs=programs)


def test_rows_without_queries_or_keys_and_padding(device):
    rows = [(1, 0), (1, 200), (0, 9), (1, 0), (1, 40), (1, 0)]
    check(made(rows, (4, 2, 32), padding=3, device=device), scores(32))


@pytest.mark.parametrize("norm", [False, True])
def test_16_bits(device, norm):
    check(made(ROWS, (4, 2, 32), norm=norm, dtype=torch.float16, device=device), scores(32))


def test_fp8_cache(interpreted, device):
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    step = made(
        [(1, 70), (1, 9), (1, 1)], (4, 2, 32), norm=True, dtype=torch.float16, kept=FP8, device=device
    )
    check(step, scores(32))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(32, 8, 128), (16, 8, 128), (9, 3, 64), (8, 4, 256), (32, 32, 80)])
def test_on_the_device(shape, dtype):
    rows = [(1, n) for n in (1, 5000, 0, 64, 333, 16, 1025)]
    for config in (PagedFew(64, 8, 1, 64), PagedFew(32, 4, 2, 64)):
        step = made(rows, shape, norm=True, dtype=dtype, device="cuda", padding=2)
        programs = configs.multiprocessors(step.slots.device) * config.programs
        check(step, scores(shape[2]), config=config, programs=programs)
        out, again = (run(step, scores(shape[2]), config, programs) for _ in range(2))
        assert torch.equal(out, again)
