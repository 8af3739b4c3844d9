"""Bits are where every other program expects them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from headrace.quant.bits import pack_bits, unpack_bits


@pytest.mark.parametrize(
    ("values", "bits", "words"),
    [
        (range(-8, 0), 4, [0x76543210]),
        (range(8), 4, [0xFEDCBA98]),
        ([-128, -1, 0, 127], 8, [0xFF807F00]),
        (list(range(-4, 4)) * 4, 3, [0x88FAC688, 0xC688FAC6, 0xFAC688FA]),
    ],
)
def test_golden_vectors(values, bits: int, words: list[int]):
    unsigned = torch.tensor(list(values)) + (1 << bits - 1)
    packed = pack_bits(unsigned, bits)
    assert packed.dtype == torch.int32
    assert [int(word) & 0xFFFFFFFF for word in packed] == words
    assert unpack_bits(packed, bits, len(unsigned)).tolist() == unsigned.tolist()


@given(some.integers(2, 8), some.integers(1, 70), some.integers(0, 1 << 30))
def test_there_and_back(bits: int, count: int, seed: int):
    values = torch.randint(1 << bits, (3, count), generator=torch.Generator().manual_seed(seed))
    packed = pack_bits(values, bits)
    assert packed.shape == (3, -(-count * bits // 32))
    assert torch.equal(unpack_bits(packed, bits, count).long(), values)
