"""Takes tokens out of the running: logits become -inf where a mask of one bit per token says so."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.launch import on_gpu


def forbid_ref(logits_SV: Tensor, rows_M: Tensor, bits_MW: Tensor) -> None:
    """The definition of forbid."""
    ids = torch.arange(logits_SV.shape[1], device=logits_SV.device)
    allowed_MV = bits_MW[:, ids // 32] >> (ids % 32) & 1 == 1
    logits_SV[rows_M] = logits_SV[rows_M].masked_fill(~allowed_MV, -torch.inf)


def forbid(logits_SV: Tensor, rows_M: Tensor, bits_MW: Tensor) -> None:
    """Write -inf where a row's mask has no bit; rows that are not named stay as they are.

    logits float32 contiguous; rows int64, no two alike; bits int32, bit i of word w for token 32 * w + i.
    """
    if not len(rows_M):
        return
    if on_gpu(logits_SV, rows_M, bits_MW):
        from headrace.kernels.gpu import forbid as gpu  # needs triton, which only GPU builds of torch bring

        gpu.forbid(logits_SV, rows_M, bits_MW)
    elif bits_MW.is_cuda or not logits_SV.is_contiguous():
        forbid_ref(logits_SV, rows_M, bits_MW)
    else:
        _by_table(logits_SV, rows_M, bits_MW)


def _by_table(logits_SV: Tensor, rows_M: Tensor, bits_MW: Tensor) -> None:
    """Eight logits for a byte of the mask; row by row, because a row fits into a core's cache."""
    vocab, table = logits_SV.shape[1], _table()
    for row, bits_W in zip(rows_M.tolist(), bits_MW.view(torch.uint8), strict=True):
        logits_SV[row].add_(table.index_select(0, bits_W.int()).view(-1)[:vocab])


@cache
def _table() -> Tensor:
    """float32 [256, 8]: 0 for each of a byte's bits, the lowest first, that is set, else -inf."""
    every = np.arange(256, dtype=np.uint8)[:, None]
    allowed = torch.from_numpy(np.unpackbits(every, axis=1, bitorder="little") == 1)
    return torch.where(allowed, 0.0, -torch.inf)
