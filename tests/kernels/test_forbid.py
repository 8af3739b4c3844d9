"""Masks of one bit per token."""

import pytest
import torch

from headrace.kernels.forbid import forbid, forbid_ref

SIZES = [1, 31, 32, 33, 300, 5000]


def masks(rows: int, size: int) -> torch.Tensor:
    """Random bits, some rows all or nothing."""
    bits = torch.randint(-(2**31), 2**31, (rows, -(-size // 32)), dtype=torch.int32)
    bits[0], bits[-1] = 0, -1
    return bits


def test_a_bit_stands_for_a_token():
    logits = torch.zeros(3, 40)
    forbid_ref(
        logits, torch.tensor([2, 0]), torch.tensor([[-1, 1 << 7], [1 << 31 - 1, 0]], dtype=torch.int32)
    )
    assert logits[1].tolist() == [0] * 40
    assert [n for n, x in enumerate(logits[0].tolist()) if x == 0] == [30]
    assert [n for n, x in enumerate(logits[2].tolist()) if x == 0] == [*range(32), 39]


def test_a_mask_of_nobody_changes_nothing():
    logits = torch.zeros(2, 40)
    forbid_ref(logits, torch.tensor([-1, 0]), torch.tensor([[0, 0], [0, -1]], dtype=torch.int32))
    assert logits[1].tolist() == [0] * 40
    assert logits[0].isfinite().tolist() == [False] * 32 + [True] * 8


@pytest.mark.parametrize("size", SIZES)
def test_the_fast_way_on_a_cpu_equals_the_definition(size: int):
    logits, rows = torch.randn(6, size), torch.tensor([4, 0, -1, 3, -1, 1])
    bits, expected = masks(6, size), logits.clone()
    forbid_ref(expected, rows, bits)
    forbid(logits, rows, bits)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("size", SIZES)
def test_kernel_equals_definition(device: torch.device, size: int):
    from headrace.kernels.gpu import forbid as gpu

    logits, rows = torch.randn(6, size, device=device), torch.tensor([4, 0, -1, 3, -1, 1], device=device)
    bits, expected = masks(6, size).to(device), logits.clone()
    forbid_ref(expected, rows, bits)
    gpu.forbid(logits, rows, bits)
    assert torch.equal(logits, expected)


def test_no_rows_change_nothing():
    logits = torch.randn(2, 8)
    kept = logits.clone()
    forbid(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.int32))
    assert torch.equal(logits, kept)
