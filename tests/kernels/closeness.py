"""How near a kernel must come to its definition computed in float32."""

import torch
from torch import Tensor

# Relative errors of a whole tensor; 16-bit results are rounded once or twice (Triton's interpreter cuts).
BOUND = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_close(out: Tensor, wanted: Tensor, bound: float | None = None) -> None:
    """The norm of the difference against the norm of what is wanted; NaN never passes."""
    assert out.shape == wanted.shape
    error = (out.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    limit = BOUND[out.dtype] if bound is None else bound
    assert error <= limit, f"relative error {float(error):.3g} over {limit:.3g}"
