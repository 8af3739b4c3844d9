"""From 8-bit floats to the type that matrix units take, on every generation."""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq


@triton.jit
def widen(x, to: tl.constexpr):
    """x in another type. Before compute capability 9.0 no instruction makes bfloat16 of what 8 bits are made into."""
    if x.dtype == tl.float8e4nv and to == tl.bfloat16 and not cuda_capability_geq(9, 0):
        return x.to(tl.float16).to(tl.float32).to(to)
    else:
        return x.to(to)
