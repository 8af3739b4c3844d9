"""What is tried at start finds what would change a bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.engine.program import KEYS, hidden, program
from headrace.engine.reach import NO_BIAS, NONE
from headrace.engine.same_bits import keeps

SIZES = [(2, 2, 16), (3, 3, 64), (1, 7, 32), (8, 4, 128)]
FIXED = program(True)


class Sloppy:
    """The program with another function in place of one of its own."""

    def __init__(self, name: str, function: Callable[..., Tensor]):
        self._name, self._function = name, function

    def __getattr__(self, name: str) -> Any:
        return self._function if name == self._name else vars(type(FIXED)).get(name, FIXED.__getattr__(name))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_program_keeps_bits_and_the_fast_one_does_not(sizes: tuple[int, int, int]):
    assert keeps(FIXED, [(lambda x: FIXED.gated(x), 6 * 77)], sizes)
    assert not keeps(program(False), [], sizes)


@pytest.mark.parametrize(
    "function",
    [lambda x: x / x.std(), lambda x: x * (1 + 1e-6 * (len(x) == 1)), lambda x: x.cumsum(0)],
    ids=["looks at others", "treats one differently", "knows its place"],
)
def test_functions_of_rows_that_do_not_are_found(function: Callable[[Tensor], Tensor]):
    assert keeps(FIXED, [(torch.neg, 9)], SIZES[0])
    assert not keeps(FIXED, [(torch.neg, 9), (function, 9)], SIZES[0])


@pytest.mark.parametrize("name", ["stretch", "among", "decode"])
def test_attention_that_does_not_is_found(name: str):
    def slightly(q: Tensor, *rest: Any) -> Tensor:
        made = FIXED.__getattr__(name)(q, *rest)
        return made * (1 + 1e-6) if len(q) < KEYS else made

    assert not keeps(Sloppy(name, slightly), [], SIZES[0])


def test_threads_are_as_before_whatever_happens():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert keeps(FIXED, [], SIZES[1])
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError):
            keeps(FIXED, [(lambda x: x @ x, 3)], SIZES[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_keys_in_common_change_no_bit(sizes: tuple[int, int, int]):
    """Rows that begin alike read what they share once: whole tiles of keys, then each its own."""
    heads, group, size = sizes
    shared, own, rows, most = KEYS, 37, 3, 2
    keys = shared + own
    k, v = (torch.randn(shared + rows * own, heads, size) for _ in range(2))
    q = torch.randn(rows * most, heads * group, size)
    slots = [torch.cat((torch.arange(shared), torch.arange(own) + shared + n * own)) for n in range(rows)]
    cells = torch.stack([row[shared:] for row in slots])[None] * heads + torch.arange(heads)[:, None, None]
    bias = torch.zeros(rows, most, 1, own)
    bias[:, 0, :, -1] = -torch.inf  # of two queries the first does not see the newest key
    none = hidden(torch.float32)
    made = FIXED.decode(q, k, v, heads, NONE, 0, shared, cells.reshape(-1), bias, none)
    for n, row in enumerate(slots):
        two = slice(n * most, n * most + most)
        assert torch.equal(FIXED.stretch(q[two], k, v, heads, row, 0, 0, none), made[two])
        last = FIXED.decode(q[two][1:], k, v, heads, row, 0, 0, NONE, NO_BIAS, none)
        assert torch.equal(last, made[two][1:])
    assert keys > KEYS
