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
        self.dtype: torch.dtype | None = None  # of the rows handed out, where it is not the table's
        self._rounded: dict[torch.dtype, float] = {}

    def keep(self, table_VE: Tensor, dtype: torch.dtype) -> None:
        """Have this table from now on, whatever its type; rows are handed out in another."""
        self.dtype = dtype
        self.weight = nn.Parameter(table_VE, requires_grad=False)

    def forward(self, ids_T: Tensor) -> Tensor:
        """[T] int64 to [T, hidden]."""
        dtype = self.dtype or self.weight.dtype
        if dtype not in self._rounded:
            self._rounded[dtype] = torch.tensor(self.scale, dtype=dtype, device="cpu").item()
        scale = self._rounded[dtype]
        if dtype == self.weight.dtype:
            return embed(ids_T, self.weight, scale)
        rows = embed(ids_T, self.weight).to(dtype)
        return rows if scale == 1.0 else rows.mul_(scale)
