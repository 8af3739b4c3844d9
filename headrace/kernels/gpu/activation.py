"""Gated activations in Triton: act(gate) * up in one pass over a fused projection."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels.launch import rows_of


@triton.jit
def gated_kernel(x_ptr, out_ptr, x_stride, F, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """BLOCK outputs of one row; the activation is rounded to the input's type, as the definition does."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(x_ptr + row * x_stride + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + F + f, mask=f < F, other=0.0)
    if KIND == "silu":
        act = gate * tl.sigmoid(gate)
    else:  # gelu, tanh approximation, by 0.5 * (1 + tanh(z)) = sigmoid(2z)
        act = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    act = act.to(up.dtype).to(tl.float32)
    tl.store(out_ptr + row * F + f, (act * up.to(tl.float32)).to(up.dtype), mask=f < F)


def gated(gate_up: Tensor, kind: str, pdl: bool = False) -> Tensor:
    """act(gate) * up as [..., F] for gate_up [..., 2F]; kind is silu or gelu."""
    flat = rows_of(gate_up)
    rows, size = flat.shape[0], flat.shape[1] // 2
    out = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    block = 512 if rows <= 16 else 2048
    if rows:
        gated_kernel[(rows, triton.cdiv(size, block))](
            flat, out, flat.stride(0), size, KIND=kind, BLOCK=block, PDL=pdl, num_warps=4, launch_pdl=pdl
        )
    return out
