"""Tries at start whether the machine's libraries give a row the same bits in any company, as program.py counts on.

S keys, K kv heads, G queries of each, D head size.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from headrace.engine.program import BLOCK, KEYS, hidden
from headrace.engine.reach import NO_BIAS, NONE

ROWS = 130
"""Tokens that functions of rows are tried with."""
LENGTH = 2 * KEYS + 20
"""Keys that attention is tried with: more than a tile of values, and than a block of queries."""
CUTS = ((0, 5), (0, LENGTH), (9, BLOCK + 9), (BLOCK - 1, BLOCK + 2), (20, LENGTH - 1))
"""Parts of a prompt that are computed by themselves."""
SINGLE = (0, 1, 2, 3, 14, 15, 16, *range(BLOCK - 1, BLOCK + 18, 2), *range(2 * KEYS - 1, LENGTH))
"""Positions that are computed as single tokens."""


@torch.inference_mode()
def keeps(
    program: Any, rows: Iterable[tuple[Callable[[Tensor], Tensor], int]], sizes: tuple[int, int, int]
) -> bool:
    """Whether all of them do, with as many threads as there are, half of them and one, which must not matter either.

    rows: functions of rows, and how many columns they take; sizes: K, G and D.
    """
    threads, rows = torch.get_num_threads(), list(rows)
    generator = torch.Generator("cpu").manual_seed(0)
    given = [torch.randn(ROWS, columns, generator=generator, device="cpu") for _, columns in rows]
    heads, group, size = sizes
    q = torch.randn(LENGTH, heads * group, size, generator=generator, device="cpu")
    k, v = (torch.randn(LENGTH, heads, size, generator=generator, device="cpu") for _ in range(2))
    try:
        torch.set_num_threads(1)
        expected = [function(x) for (function, _), x in zip(rows, given, strict=True)]
        attended = program.stretch(q, k, v, heads, NONE, 0, LENGTH, hidden(torch.float32))
        for count in {1, max(1, threads // 2), threads}:
            torch.set_num_threads(count)
            alike = all(
                _rows(function, x, whole)
                for (function, _), x, whole in zip(rows, given, expected, strict=True)
            )
            if not (alike and _attention(program, q, k, v, attended)):
                return False
        return True
    finally:
        torch.set_num_threads(threads)


def _rows(function: Callable[[Tensor], Tensor], x: Tensor, whole: Tensor) -> bool:
    parts = [(n, n + 1) for n in range(0, ROWS, 16)] + [(0, 2), (1, 18), (64, 129), (0, ROWS)]
    return all(torch.equal(function(x[a:b]), whole[a:b]) for a, b in parts)


def _attention(program: Any, q: Tensor, k: Tensor, v: Tensor, whole: Tensor) -> bool:
    heads, none = k.shape[1], hidden(torch.float32)
    for a, b in CUTS:
        if not torch.equal(program.stretch(q[a:b], k, v, heads, NONE, 0, b, none), whole[a:b]):
            return False
    # In lanes, all beside each other, hidden keys being those of others; and each by itself.
    lanes = [x.transpose(0, 1).repeat(len(SINGLE), 1, 1) for x in (k, v)]
    last = torch.tensor(SINGLE, device="cpu")
    bias = torch.zeros(len(SINGLE), LENGTH, device="cpu")
    bias.masked_fill_(torch.arange(LENGTH, device="cpu") > last[:, None], -torch.inf)
    made = program.among(q[last], k, v, heads, *lanes, NONE, NONE, NONE, bias[:, None, None, None])
    if not torch.equal(made, whole[last]):
        return False
    return all(
        torch.equal(
            program.decode(q[n : n + 1], k, v, heads, NONE, 0, n + 1, NONE, NO_BIAS, none)[0], whole[n]
        )
        for n in SINGLE
    )
