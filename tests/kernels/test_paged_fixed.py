"""Attention that is the same in chunks, one by one and in company: against its definition, and bit for bit."""

from itertools import pairwise

import pytest
import torch

from headrace.kernels import rules
from headrace.kernels.choices import PagedFixed
from headrace.kernels.paged import Pages, paged_attention, prefill_work
from tests.kernels.closeness import assert_close
from tests.kernels.pages import draw, scores

pytestmark = pytest.mark.usefixtures("even_sums")

ROWS = [(1, 1), (5, 5), (1, 70), (0, 7), (20, 70), (1, 0), (2, 33), (1, 100), (17, 17), (1, 16)]
EIGHT = TINY = PagedFixed(rows=16, keys=16, split=32, warps=4, stages=2)


def run(q, pages, rule, config=TINY, programs=7):
    """What both kernels write, over poison; the counters must be back at zero."""
    from headrace.kernels.gpu.paged_decode import Workspace
    from headrace.kernels.gpu.paged_fixed import decode, prefill

    out, workspace = torch.full_like(q, float("nan")), Workspace(q.device)
    span = config.rows // (q.shape[1] // pages.k.shape[2])
    work = torch.from_numpy(prefill_work(pages.starts.cpu().numpy(), pages.context.cpu().numpy(), span))
    prefill(q, pages, rule, out, work.to(q.device), config=config)
    decode(q, pages, rule, out, workspace, config=config, programs=programs)
    assert not workspace.arrived.any()
    return out


def check(q, pages, rule, **options):
    assert_close(run(q, pages, rule, **options), paged_attention(q, pages, rule))


def one(q, pages: Pages, row: int, first: int, stop: int, keys: int) -> tuple[torch.Tensor, Pages]:
    """Queries first .. stop of a row as a step of their own, in which it has `keys` keys."""
    start = int(pages.starts[row])
    starts = torch.tensor([0, stop - first], dtype=torch.int32, device=q.device)
    context = torch.tensor([keys], dtype=torch.int32, device=q.device)
    alone = pages._replace(table=pages.table[row : row + 1], starts=starts, context=context)
    return q[start + first : start + stop], alone


def in_pieces(q, pages, rule, row, cuts, **options):
    """The same row in chunks that end at `cuts` of its queries, each over the keys that there were by then."""
    queries, keys = int(pages.starts[row + 1] - pages.starts[row]), int(pages.context[row])
    return torch.cat(
        [
            run(*one(q, pages, row, a, b, keys - queries + b), rule, **options)
            for a, b in pairwise([0, *cuts, queries])
        ]
    )


@pytest.mark.parametrize("programs", [1, 7, 50])
def test_rows_of_all_kinds(device, programs):
    q, pages = draw(ROWS, (4, 2, 32), device=device, padding=3)
    check(q, pages, scores(32), programs=programs)


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("config", [PagedFixed(32, 16, 16, 4, 3), PagedFixed(16, 32, 64, 2, 2)])
def test_blocks_and_tiles(device, block, config):
    q, pages = draw(ROWS, (2, 1, 16), block, device=device)
    check(q, pages, scores(16), config=config)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [((4, 2, 32), {}), ((2, 1, 32), {"window": 21}), ((2, 1, 32), {"softcap": 2.0}), ((3, 1, 24), {})],
    ids=str,
)
def test_chunks_and_single_tokens_give_the_same_bits(device, shape, rule):
    q, pages = draw([(34, 70), (9, 9)], shape, device=device)
    rule = scores(shape[2], **rule)
    whole = run(q, pages, rule)[:34]
    for cuts in ([1, 7, 8, 20], [31, 32, 33]):
        assert torch.equal(in_pieces(q, pages, rule, 0, cuts), whole), cuts


def test_rows_do_not_depend_on_each_other_nor_on_the_grid(device):
    q, pages = draw(ROWS, (4, 2, 32), device=device)
    together = run(q, pages, scores(32))
    for row, (queries, keys) in enumerate(ROWS):
        start = int(pages.starts[row])
        alone = run(*one(q, pages, row, 0, queries, keys), scores(32), programs=row + 1) if queries else q[:0]
        assert torch.equal(alone, together[start : start + queries])


def test_blocks_of_another_size_give_the_same_bits(device):
    q, pages = draw([(3, 60), (1, 60)], (4, 2, 32), 16, device=device)
    paired = [x.unflatten(0, (-1, 1)).flatten(1, 2) for x in (pages.k, pages.v)]
    order = [row[:4].long() for row in pages.table]
    k, v = (torch.cat([x[o].view(2, 32, *x.shape[2:]) for o in order]) for x in paired)
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=q.device)
    wide = pages._replace(k=k.contiguous(), v=v.contiguous(), table=table)
    assert torch.equal(run(q, wide, scores(32)), run(q, pages, scores(32)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(32, 8, 128), (16, 8, 128), (9, 3, 64), (8, 4, 256), (32, 32, 80), (16, 1, 96)]
)
def test_the_model_s_configuration_on_the_device(shape, dtype):
    """As the engine uses it: a prompt at once, in chunks, its last tokens one by one, over several splits."""
    rows = [(300, 5000), (1, 1), (1, 4100), (40, 40), (1, 0), (1, 2048)] + [
        (1, 90 + 7 * i) for i in range(60)
    ]
    q, pages = draw(rows, shape, dtype=dtype, device="cuda", padding=2)
    config, rule = rules.paged_fixed(shape[2]), scores(shape[2])
    whole = run(q, pages, rule, config=config, programs=264)
    assert_close(whole, paged_attention(q, pages, rule))
    for cuts in ([1, 2, 3, 150], [64, 128, 256], list(range(280, 300))):
        assert torch.equal(in_pieces(q, pages, rule, 0, cuts, config=config, programs=100), whole[:300])
