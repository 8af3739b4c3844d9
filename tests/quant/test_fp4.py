"""4-bit floats: halves go to the even code."""

import torch

from headrace.quant.fp4 import codes, pack_fp4, unpack_fp4

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_halves():
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert [VALUES[code] for code in codes(halves)] == [0, 1, 1, 2, 2, 4, 4]
    assert (codes(-halves) & 7).equal(codes(halves))


def test_the_nearest_is_chosen():
    x = torch.linspace(-7, 7, 4001)
    table = torch.tensor([*VALUES, *(-value for value in VALUES)])
    nearest = (x[:, None] - table).abs().amin(1)
    assert torch.allclose((x - table[codes(x).int()]).abs(), nearest)


def test_even_columns_are_in_low_nibbles():
    packed = pack_fp4(torch.tensor([[0.5, -6.0, 3.0, 0.0]]))
    assert packed.tolist() == [[0xF1, 0x05]]
    assert unpack_fp4(packed).tolist() == [[0.5, -6.0, 3.0, 0.0]]


def test_every_code_has_its_value():
    packed = torch.arange(256, dtype=torch.uint8)
    table = [*VALUES, *(-value for value in VALUES)]
    expected = [[table[byte & 15], table[byte >> 4]] for byte in packed.tolist()]
    assert unpack_fp4(packed[:, None]).tolist() == expected
