"""Weights rounded to 8 bits, piece by piece."""

import pytest
import torch

from headrace.quant.schemes import int8

SCHEME = int8.SCHEMES["int8"]


@pytest.mark.parametrize("rows", [1, 64, 200])
def test_pieces_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch):
    """What is made of rows on the way is what could be made of all of them before, in whole groups of rows."""
    weight = torch.randn(rows, 24, dtype=torch.float16)
    seen: list[int] = []

    def doubled(piece: torch.Tensor) -> torch.Tensor:
        seen.append(len(piece))
        return piece.float() * 2

    expected = SCHEME.pack(weight.float() * 2)
    monkeypatch.setattr(int8, "PIECE", 128 * 24 + 5)
    found = SCHEME.pack(weight, doubled)
    assert torch.equal(found["weight"], expected["weight"])
    assert torch.equal(found["scale"], expected["scale"])
    assert sum(seen) == rows
    assert max(seen) <= 128
    assert not any(size % int8.TOGETHER for size in seen[:-1])


def test_the_error_is_half_a_step():
    weight = torch.randn(70, 33)
    packed = SCHEME.pack(weight)
    off = (SCHEME.unpack(packed) - weight).abs()
    assert bool((off <= weight.abs().amax(1, keepdim=True) * SCHEME.error * 1.001).all())
    assert packed["weight"].abs().max() == int8.LARGEST
