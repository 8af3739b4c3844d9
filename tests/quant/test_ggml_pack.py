"""Blocks are the reference's, byte for byte, where that rounds plainly; elsewhere they are read back nearly."""

import gguf
import numpy as np
import pytest
import torch

from headrace.quant.ggml import dequantize
from headrace.quant.ggml_pack import quantize


def weight(columns: int) -> torch.Tensor:
    made = torch.randn(64, columns, generator=torch.Generator().manual_seed(3))
    made[0] = 0
    made[1] = made[1].abs()
    made[2] *= 0.1
    made[3] = (made[3] * 4).round() / 4  # ties
    return made


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_bytes_are_the_references(kind: str):
    expected = gguf.quantize(weight(256).numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(quantize(weight(256), kind).flatten(1).numpy(), expected)


@pytest.mark.parametrize(("kind", "most"), [("Q4_K", 0.09), ("Q5_K", 0.045), ("Q6_K", 0.022)])
def test_larger_blocks_are_near(kind: str, most: float):
    x = weight(512)
    back = dequantize(quantize(x, kind), kind, x.shape)
    assert np.array_equal(
        back.numpy(), gguf.dequantize(quantize(x, kind).flatten(1).numpy(), gguf.GGMLQuantizationType[kind])
    )
    error = (back - x).norm(dim=1) / x.norm(dim=1).clamp_min(1e-9)
    assert 0 < error.max() < most


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="not whole Q4_0 blocks"):
        quantize(torch.ones(2, 48), "Q4_0")
