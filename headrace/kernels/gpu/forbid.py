"""Masks of one bit per token on logits, in Triton."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def forbid_kernel(logits_ptr, rows_ptr, bits_ptr, stride, V, W, BLOCK: tl.constexpr):
    """Program (mask, part of the vocabulary). Logits are written where they change and never read."""
    m = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + m)
    if row >= 0:
        words = tl.load(bits_ptr + m * W + ids // 32, mask=ids < V, other=-1)
        banned = ((words >> (ids % 32)) & 1) == 0
        tl.store(logits_ptr + row * stride + ids, float("-inf"), mask=banned & (ids < V))


def forbid(logits_SV: Tensor, rows_M: Tensor, bits_MW: Tensor) -> None:
    """-inf where bit i of word w of a row's mask, for token 32 * w + i, is not set. Rows below 0 are nobody's."""
    vocab, bits_MW = logits_SV.shape[1], bits_MW.contiguous()
    assert logits_SV.stride(1) == 1 and bits_MW.shape[1] * 32 >= vocab
    grid = (len(rows_M), triton.cdiv(vocab, BLOCK))
    forbid_kernel[grid](logits_SV, rows_M, bits_MW, logits_SV.stride(0), vocab, bits_MW.shape[1], BLOCK=BLOCK)
