"""Paged attention: its definition against torch's own attention over contiguous keys, all kernels against it."""

import pytest
import torch
import torch.nn.functional as F

from headrace.kernels.paged import attend, paged_attention
from tests.kernels import test_paged_decode, test_paged_fixed, test_paged_prefill
from tests.kernels.pages import draw, hide, scores

KERNELS = [test_paged_decode, test_paged_fixed, test_paged_prefill]
ROWS = [(1, 1), (5, 5), (1, 70), (0, 7), (40, 70), (1, 0), (2, 33), (1, 130), (3, 90), (17, 17), (1, 16)]
SHAPES = [(1, 1, 64), (6, 2, 80), (8, 1, 96), (7, 1, 24), (16, 1, 32), (4, 4, 128), (2, 1, 256)]


@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (1, 7), (5, 5), (3, 9)])
def test_equals_scaled_dot_product_attention(tokens, keys):
    q, k, v = (torch.randn(n, h, 8) for n, h in ((tokens, 6), (keys, 2), (keys, 2)))
    seen = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
    wanted = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=seen, enable_gqa=True
    )
    torch.testing.assert_close(attend(q, k, v, scores(8)), wanted.transpose(0, 1))


def test_a_window_is_attention_over_its_keys_alone():
    q, k, v = (torch.randn(n, 2, 8) for n in (1, 9, 9))
    torch.testing.assert_close(attend(q, k, v, scores(8, window=4)), attend(q, k[5:], v[5:], scores(8)))


def test_softcap_bounds_scores():
    q, k, v = (
        torch.full((1, 1, 4), 100.0),
        torch.tensor([[[100.0] * 4], [[-100.0] * 4]]),
        torch.randn(2, 1, 4),
    )
    weight = torch.softmax(torch.tensor([2.0, -2.0]), 0)
    torch.testing.assert_close(attend(q, k, v, scores(4, softcap=2.0))[0, 0], weight @ v[:, 0])


def test_rows_are_chosen_by_their_number_of_queries():
    q, pages = draw([(1, 5), (3, 8), (0, 4), (2, 2), (1, 0)], (2, 1, 8), dtype=torch.float32, padding=2)
    one, more = paged_attention(q, pages, scores(8), most=1), paged_attention(q, pages, scores(8), least=2)
    assert one[0].any()
    assert more[1:6].flatten(1).any(1).all()
    assert not one[1:].any()
    assert not more[0].any()
    assert not more[6:].any()


@pytest.fixture(params=KERNELS, ids=lambda module: module.__name__.rpartition("_")[2])
def kernel(request, device):
    """A module whose `check` looks at the rows that its kernel serves."""
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(device, kernel, shape):
    q, pages = draw([(19, 37), (1, 5), (3, 64), (1, 40)], shape, device=device)
    kernel.check(q, pages, scores(shape[2]))


@pytest.mark.parametrize("window", [1, 7, 16, 50, 1000])
def test_windows(device, kernel, window):
    q, pages = draw(ROWS, (2, 1, 32), device=device)
    hide(pages, window)
    kernel.check(q, pages, scores(32, window=window))


@pytest.mark.parametrize("window", [None, 20])
def test_softcap(device, kernel, window):
    q, pages = draw(ROWS, (2, 1, 32), device=device)
    kernel.check(q * 20, pages, scores(32, softcap=3.0, window=window))


def test_fp8_cache(device, kernel):
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    q, pages = draw([(7, 70), (1, 9), (9, 9), (1, 80)], (4, 2, 32), device=device)
    k, v = (x.nan_to_num().to(torch.float8_e4m3fn) for x in (pages.k, pages.v))
    kernel.check(q, pages._replace(k=k, v=v, k_scale=0.5, v_scale=3.0), scores(32), config=kernel.EIGHT)
