"""Token embedding: a row of the table per id, scaled where the architecture says so."""

import torch
from torch import Tensor, nn

from headrace.kernels.embed import embed


class Embedding(nn.Module):
    """weight [vocab, hidden]. `scale` multiplies every row, rounded to the weights' dtype first as in the
    checkpoints' own code (Gemma: sqrt(hidden), which is 55.5 and not 55.43 in bfloat16)."""

    def __init__(self, vocab: int, hidden: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(vocab, hidden), requires_grad=False)

    def forward(self, ids_T: Tensor) -> Tensor:
        """[T] int64 to [T, hidden]."""
        scale = torch.tensor(self.scale, dtype=self.weight.dtype, device="cpu").item()
        return embed(ids_T, self.weight, scale)

    def extra_repr(self) -> str:
        """For printing a model."""
        return f"{tuple(self.weight.shape)}, scale={self.scale}"
