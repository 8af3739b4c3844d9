"""Decoding attention over pages against its definition in float32; what all kernels share is in test_paged.py."""

from itertools import pairwise

import pytest
import torch

from headrace.kernels import configs
from headrace.kernels.choices import PagedDecode
from headrace.kernels.paged import paged_attention
from tests.kernels.closeness import assert_close
from tests.kernels.pages import draw, hide, scores

ROWS = [(1, 1), (1, 70), (0, 5), (1, 33), (3, 40), (1, 0), (1, 16), (1, 130), (2, 2)]
EIGHT = TINY = PagedDecode(warps=2, stages=2, programs=2, split=32)


def run(q, pages, rule, programs=5, config=TINY):
    """What the kernel writes, over poison; its counters must be back at zero."""
    from headrace.kernels.gpu.paged_decode import Workspace, decode

    out = torch.full_like(q, float("nan"))
    workspace = Workspace(q.device)
    decode(q, pages, rule, out, workspace, config=config, programs=programs)
    assert not workspace.arrived.any()
    return out


def check(q, pages, rule, **options):
    """Rows of one query and the padding after the last row; the rest stays as it was."""
    out, wanted = run(q, pages, rule, **options), paged_attention(q, pages, rule, most=1)
    starts = pages.starts.tolist()
    ours = torch.zeros(len(q), dtype=torch.bool)
    ours[starts[-1] :] = True
    ours[[a for a, b in pairwise(starts) if b - a == 1]] = True
    assert_close(out[ours], wanted[ours])
    assert out[~ours].isnan().all()


@pytest.mark.parametrize("programs", [1, 5, 24])
def test_any_grid_cuts_the_work_right(device, programs):
    q, pages = draw(ROWS, (4, 2, 32), device=device, padding=3)
    check(q, pages, scores(32), programs=programs)


def test_a_few_rows_in_many_pieces(device):
    q, pages = draw([(1, 700), (1, 9)], (3, 1, 24), device=device)
    check(q, pages, scores(24), programs=40)
    hide(pages, 200)
    check(q, pages, scores(24, window=200, softcap=5.0), programs=40)


@pytest.mark.parametrize("programs", [3, 40])
def test_padding_of_a_graph_is_zero_wherever_it_stands(device, programs):
    q, pages = draw([(1, 0), (1, 200), (1, 0), (1, 0), (1, 40), (1, 0)], (4, 2, 32), device=device)
    check(q, pages, scores(32), programs=programs)


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("warps", [1, 4])
def test_blocks_and_tiles(device, block, warps):
    q, pages = draw([(1, 150), (1, 5), (1, 64)], (2, 2, 16), block, device=device)
    check(q, pages, scores(16), config=PagedDecode(warps, 3, 2, 64))


def test_q_may_be_part_of_a_wider_tensor(device):
    q, pages = draw([(1, 40), (1, 9)], (4, 2, 32), device=device)
    wide = torch.cat([q.flatten(1), torch.randn(2, 128, device=device).to(q.dtype)], 1)
    part = wide[:, :128].unflatten(1, (4, 32))
    assert torch.equal(run(part, pages, scores(32)), run(q, pages, scores(32)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(32, 8, 128), (16, 8, 128), (9, 3, 64), (8, 4, 256), (32, 32, 80)])
def test_default_configuration_on_the_device(shape, dtype):
    rows = [(1, n) for n in (1, 5000, 0, 64, 333, 16, 1025)] + [(1, 100 + 7 * i) for i in range(60)]
    q, pages = draw(rows, shape, dtype=dtype, device="cuda", padding=2)
    config = configs.paged_decode(configs.capability(q.device), shape[2])
    programs = configs.multiprocessors(q.device) * config.programs
    out, again = (run(q, pages, scores(shape[2]), programs, config) for _ in range(2))
    assert_close(out, paged_attention(q, pages, scores(shape[2]), most=1))
    assert torch.equal(out, again)
