"""Gather of embedding rows in Triton, able to start before the kernel that chose the ids has ended."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels import configs


@triton.jit
def gather_kernel(
    ids_ptr, table_ptr, out_ptr, stride, E, scale, BLOCK: tl.constexpr, PDL: tl.constexpr, HOLD: tl.constexpr
):  # fmt: skip
    """Program (token, part of the row)."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        if not HOLD:
            gdc_launch_dependents()
        gdc_wait()
        if HOLD:
            gdc_launch_dependents()  # so that whatever begins later finds what was derived for the step
    row = tl.load(ids_ptr + token).to(tl.int64)
    values = tl.load(table_ptr + row * stride + e, mask=e < E, other=0.0)
    tl.store(out_ptr + token * E + e, (values.to(tl.float32) * scale).to(values.dtype), mask=e < E)


def gather(ids: Tensor, table: Tensor, scale: float, pdl: bool = False) -> Tensor:
    """Rows [T, E] of table [V, E] for ids [T], times scale."""
    size = table.shape[1]
    ids = ids.contiguous()
    out = torch.empty((ids.shape[0], size), dtype=table.dtype, device=table.device)
    if ids.shape[0]:
        hold = pdl and configs.early(configs.capability(table.device))
        grid = (ids.shape[0], triton.cdiv(size, 1024))
        gather_kernel[grid](ids, table, out, table.stride(0), size, scale, BLOCK=1024, PDL=pdl, HOLD=hold,
                            num_warps=4, launch_pdl=pdl)  # fmt: skip
    return out
