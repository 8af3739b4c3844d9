"""What is carried arrives whole, whatever its size, type and layout."""

import pytest
import torch

from headrace.checkpoint.ferry import CHUNK, Ferry

SIZES = (3, CHUNK // 2, CHUNK // 2 + 1, 5 * CHUNK // 2 + 7)
CASES = [("cpu", 3), *(pytest.param("cuda", size, marks=pytest.mark.gpu) for size in SIZES)]


@pytest.mark.parametrize(("device", "numbers"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_of_a_tensor_arrives(device: str, numbers: int, dtype: torch.dtype):
    ferry = Ferry()
    for seed in range(2):  # the second goes through memory that the first has left full
        found = torch.randn(numbers, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
        into = torch.empty(numbers, dtype=dtype, device=device)
        assert ferry.carry(found, into) is into
        assert torch.equal(into.cpu(), found.to(dtype))


@pytest.mark.gpu
def test_rows_of_a_larger_tensor_are_filled_alone():
    found = torch.randn(3000, 4096).to(torch.bfloat16)
    whole = torch.zeros(4000, 4096, dtype=torch.bfloat16, device="cuda")
    Ferry().carry(found, whole[500:3500])
    assert torch.equal(whole[500:3500].cpu(), found)
    assert not whole[:500].any()
    assert not whole[3500:].any()
