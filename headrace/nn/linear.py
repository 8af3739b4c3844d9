"""The one linear layer: alone or several projections fused into one product, and how it splits over ranks."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Split = Literal["in", "out"] | None


class Linear(nn.Module):
    """y = x W^T + b with W [sum(outputs), inputs].

    outputs   one size, or one per fused projection; the rows of W are theirs in order
    fused     the names that the projections have in a checkpoint; () when the layer goes by its own name
    split     over ranks: by "in"put columns (results are summed), by "out"put rows, or not at all
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | Sequence[int],
        bias: bool = False,
        fused: Sequence[str] = (),
        split: Split = None,
    ):
        super().__init__()
        self.inputs = inputs
        self.outputs = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        self.fused = tuple(fused)
        self.split: Split = split
        assert not self.fused or len(self.fused) == len(self.outputs), "one size per fused name"
        rows = sum(self.outputs)
        self.weight = nn.Parameter(torch.empty(rows, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., sum(outputs)], the projections side by side."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """For printing a model."""
        names = f" = {' + '.join(self.fused)}" if self.fused else ""
        return f"{self.inputs} -> {' + '.join(map(str, self.outputs))}{names}, bias={self.bias is not None}"
