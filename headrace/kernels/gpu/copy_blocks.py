"""Copy of whole KV blocks in Triton, as the widest words that divide a block, whatever its type."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

BLOCK = 2048


@triton.jit
def copy_kernel(cache_ptr, pairs_ptr, words, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Program (pair, part of the block); words per block."""
    pair = tl.program_id(0)
    w = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    source = tl.load(pairs_ptr + pair * 2) * words
    target = tl.load(pairs_ptr + pair * 2 + 1) * words
    tl.store(cache_ptr + target + w, tl.load(cache_ptr + source + w, mask=w < words), mask=w < words)


def copy_blocks(cache: Tensor, pairs: Tensor, pdl: bool = False) -> None:
    """As headrace.kernels.copy_blocks.copy_blocks; the cache is contiguous."""
    flat = cache.view(cache.shape[0], -1).view(torch.uint8)
    size = next(
        t for t in (torch.int64, torch.int32, torch.int16, torch.uint8) if flat.shape[1] % t.itemsize == 0
    )
    flat = flat.view(size)
    if pairs.shape[0]:
        grid = (pairs.shape[0], triton.cdiv(flat.shape[1], BLOCK))
        copy_kernel[grid](
            flat, pairs.contiguous(), flat.shape[1], BLOCK=BLOCK, PDL=pdl, num_warps=8, launch_pdl=pdl
        )
