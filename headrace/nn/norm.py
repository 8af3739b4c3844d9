"""Root-mean-square normalization as a layer."""

import torch
from torch import Tensor, nn

from headrace.kernels.norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset) over the last dimension.

    offset is 1.0 for checkpoints that store weight - 1 (Gemma).
    """

    def __init__(self, size: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps, self.offset)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual); a residual of None, before the first layer, counts as zero."""
        if residual is None:
            return self(x), x
        return add_rms_norm(x, residual, self.weight, self.eps, self.offset)
