"""A weight in pieces is the whole of it."""

import torch

from headrace.optimize.pieces import pieces, stacked


def test_pieces_are_the_whole():
    w = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    parts = [{"weight": rows} for rows in pieces(w, 1000)]
    assert len(parts) > 5
    assert torch.equal(stacked(parts)["weight"], w)
