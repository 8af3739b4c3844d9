"""Every GGML type against the gguf package, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from headrace.quant.ggml import KINDS, PIECE, TYPES, dequantize, dequantize_into

HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
}
HALVES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
NAMES = sorted(KINDS)


def packed(kind: str, blocks: int, seed: int = 0) -> np.ndarray:
    """Random bytes whose scales are finite float16 numbers of every size, subnormal and negative ones too."""
    rng = np.random.default_rng(seed)
    form = KINDS[kind]
    if kind in ("F32", "F16", "BF16"):
        raw = rng.integers(0, 256, (blocks, form.bytes), dtype=np.uint8)
        raw[:, -1] &= 0xBF  # exponent below all ones: neither inf nor nan
        return raw
    raw = rng.integers(0, 256, (blocks, form.bytes), dtype=np.uint8)
    for start in HALVES[kind]:
        raw[:, start + 1] &= 0xBF
    return raw


def reference(raw: np.ndarray, kind: str) -> np.ndarray:
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return np.array_equal(ours.numpy().view(np.int32).ravel(), theirs.view(np.int32).ravel())


@pytest.mark.parametrize("kind", NAMES)
def test_equals_the_reference_bit_for_bit(kind: str):
    raw, form = packed(kind, 3000), KINDS[kind]
    ours = dequantize(torch.from_numpy(raw).flatten(), kind, (30, 100 * form.elements))
    assert ours.isfinite().all()
    assert ours.unique().numel() > 100
    assert same_bits(ours, reference(raw, kind))


@pytest.mark.parametrize("kind", NAMES)
def test_one_block_at_an_odd_address(kind: str):
    raw, form = packed(kind, 1, seed=1), KINDS[kind]
    shifted = torch.empty(form.bytes + 1, dtype=torch.uint8)[1:]
    shifted.copy_(torch.from_numpy(raw[0]))
    assert same_bits(dequantize(shifted, kind, (form.elements,)), reference(raw, kind))


def test_pieces_join_without_a_seam(monkeypatch: pytest.MonkeyPatch):
    raw = packed("Q5_K", 7)
    monkeypatch.setitem(PIECE, "cpu", 512)
    assert same_bits(dequantize(torch.from_numpy(raw), "Q5_K", (7, 256)), reference(raw, "Q5_K"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_round_the_float32_result_once(dtype: torch.dtype):
    raw = packed("Q4_1", 64)
    raw[:, 1] &= 0x3F  # keep d and m small enough for float16
    raw[:, 3] &= 0x3F
    flat = torch.from_numpy(raw)
    ours = dequantize(flat, "Q4_1", (64, 32), dtype)
    assert torch.equal(ours, dequantize(flat, "Q4_1", (64, 32)).to(dtype))


def test_fills_rows_of_a_larger_tensor_in_place():
    raw = packed("Q8_0", 4)
    whole = torch.zeros(6, 64)
    dequantize_into(torch.from_numpy(raw), "Q8_0", whole[2:4])
    assert same_bits(whole[2:4], reference(raw, "Q8_0"))
    assert not whole[:2].any()
    assert not whole[4:].any()


def test_codes_and_sizes_are_those_of_the_format():
    for code, form in TYPES.items():
        assert gguf.GGMLQuantizationType(code).name == form.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(code)] == (form.elements, form.bytes)


def test_wrong_sizes_are_errors():
    with pytest.raises(ValueError, match="not whole Q4_0 blocks of 32"):
        KINDS["Q4_0"].size((2, 33))
    with pytest.raises(ValueError, match="17 bytes of Q4_0, 18 expected"):
        dequantize(torch.zeros(17, dtype=torch.uint8), "Q4_0", (32,))
