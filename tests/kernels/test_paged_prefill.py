"""Prompt attention over pages against its definition in float32; what all kernels share is in test_paged.py."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from headrace.kernels import configs
from headrace.kernels.choices import PagedPrefill
from headrace.kernels.paged import paged_attention, prefill_work
from tests.kernels.closeness import assert_close
from tests.kernels.pages import draw, hide, scores

ROWS = [(5, 5), (1, 9), (0, 7), (40, 70), (2, 33), (0, 0), (17, 17), (3, 90)]
TINY = PagedPrefill(rows=32, keys=16, warps=4, stages=2)
EIGHT = PagedPrefill(rows=32, keys=32, warps=4, stages=2)


def run(q, pages, rule, config=TINY, least=2, fresh=None, idle=0):
    """What the kernel writes, over poison; `idle` items of the list are none."""
    from headrace.kernels.gpu.paged_prefill import prefill

    span = config.rows // (q.shape[1] // pages.k.shape[2])
    work = prefill_work(pages.starts.cpu().numpy(), pages.context.cpu().numpy(), span, least)
    work = np.concatenate([work, np.full((idle, 2), -1, np.int32)])
    out = torch.full_like(q, float("nan"))
    prefill(q, pages, rule, out, torch.from_numpy(work).to(q.device), config=config, fresh=fresh)
    return out


def check(q, pages, rule, **options):
    """Rows of two queries or more; the rest stays as it was."""
    out, wanted = run(q, pages, rule, **options), paged_attention(q, pages, rule, least=2)
    starts = pages.starts.tolist()
    ours = torch.zeros(len(q), dtype=torch.bool)
    for a, b in pairwise(starts):
        ours[a:b] = b - a > 1
    assert_close(out[ours], wanted[ours])
    assert out[~ours].isnan().all()


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("keys", [16, 32])
def test_rows_of_all_kinds(device, block, keys):
    q, pages = draw(ROWS, (4, 2, 32), block, device=device, padding=3)
    check(q, pages, scores(32), config=PagedPrefill(64, keys, 4, 3))


def test_places_of_the_list_may_be_empty(device):
    q, pages = draw(ROWS, (4, 2, 32), device=device, padding=3)
    check(q, pages, scores(32), idle=7)


def test_single_queries_may_be_served_too(device):
    q, pages = draw([(1, 40), (3, 9), (1, 1)], (4, 2, 32), device=device)
    assert_close(run(q, pages, scores(32), least=1), paged_attention(q, pages, scores(32)))


def test_fresh_keys_need_no_pages(device):
    q, pages = draw([(20, 20), (33, 33)], (4, 2, 32), device=device)
    slots = [
        int(pages.table[r, i // 16]) * 16 + i % 16
        for r, n in enumerate(pages.context.tolist())
        for i in range(n)
    ]
    both = torch.cat(
        [x.flatten(0, 1)[slots] for x in (pages.k, pages.v)], dim=1
    )  # as a fused projection leaves it
    out = run(q, pages, scores(32), fresh=(both[:, :2], both[:, 2:]))
    assert torch.equal(out, run(q, pages, scores(32)))


@pytest.mark.usefixtures("even_sums")
def test_a_query_depends_on_nothing_but_its_own_keys(device):
    q, pages = draw([(60, 60), (9, 9)], (4, 2, 32), device=device)
    whole = run(q, pages, scores(32))
    for start, stop in ((0, 7), (7, 33), (33, 60)):  # the same prompt in chunks, alone
        chunk = pages._replace(
            table=pages.table[:1], starts=torch.tensor([0, stop - start]).to(pages.starts),
            context=torch.tensor([stop]).to(pages.context),
        )  # fmt: skip
        assert torch.equal(run(q[start:stop], chunk, scores(32)), whole[start:stop])


def test_work_covers_every_query_once_and_is_longest_first():
    starts, context = np.array([0, 5, 6, 6, 46]), np.array([9, 3, 4, 40])
    work = prefill_work(starts, context, 16)
    assert work.tolist() == [[3, 32], [3, 16], [3, 0], [0, 0]]
    assert prefill_work(starts, context, 16, least=1).tolist()[-1] == [1, 0]
    assert prefill_work(starts[1:2], context[:0], 16).shape == (0, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(32, 8, 128), (16, 8, 128), (9, 3, 64), (8, 4, 256), (32, 32, 80)])
def test_default_configuration_on_the_device(shape, dtype):
    q, pages = draw([(700, 700), (33, 1500), (2, 2), (129, 129)], shape, dtype=dtype, device="cuda")
    config = configs.paged_prefill(configs.capability(q.device), shape[2])
    for rule in (scores(shape[2]), scores(shape[2], window=200)):
        check(q, pages, rule, config=config)


FETCHED = PagedPrefill(rows=128, keys=64, warps=8, stages=2, fetched=True)
"""The kernel with a warp that fetches; Gluon has no interpreter."""


@pytest.fixture
def hopper():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(32, 8, 128), (4, 4, 128), (16, 1, 64), (32, 1, 128)])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_fetched_rows_of_all_kinds(hopper, shape, block):
    rows = [*ROWS, (700, 700), (300, 1460), (129, 129)]
    for dtype in (torch.bfloat16, torch.float16):
        q, pages = draw(rows, shape, block, dtype=dtype, device=hopper, padding=5)
        check(q, pages, scores(shape[2]), config=FETCHED, idle=9)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [1, 7, 16, 50, 130, 1000])
def test_fetched_windows(hopper, window):
    q, pages = draw([*ROWS, (300, 460), (150, 900)], (8, 2, 128), device=hopper)
    hide(pages, window)
    check(q, pages, scores(128, window=window), config=FETCHED)
    check(q * 20, pages, scores(128, softcap=3.0, window=window), config=FETCHED)


@pytest.mark.gpu
def test_what_cannot_be_fetched_goes_to_the_other_kernel(hopper):
    from headrace.kernels.gpu import paged_prefill_hopper as fetching

    q, pages = draw(ROWS, (9, 3, 64), device=hopper)
    assert not fetching.fits(q, pages)
    check(q, pages, scores(64), config=FETCHED)
    q, pages = draw(ROWS, (8, 2, 64), device=hopper)
    assert fetching.fits(q, pages)
    assert not fetching.fits(q.bfloat16(), pages)
