"""The definition of paged attention against torch's own attention over contiguous keys."""

import pytest
import torch
import torch.nn.functional as F

from headrace.kernels.paged import attend, paged_attention
from tests.kernels.pages import draw, scores


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
