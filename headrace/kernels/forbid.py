"""Takes tokens out of the running: logits become -inf where a mask of one bit per token says so."""

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.launch import on_gpu


def forbid_ref(logits_SV: Tensor, rows_M: Tensor, bits_MW: Tensor) -> None:
    """The definition of forbid."""
    rows_M, bits_MW = rows_M[rows_M >= 0], bits_MW[rows_M >= 0]
    ids = torch.arange(logits_SV.shape[1], device=logits_SV.device)
    allowed_MV = bits_MW[:, ids // 32] >> (ids % 32) & 1 == 1
    logits_SV[rows_M] = logits_SV[rows_M].masked_fill(~allowed_MV, -torch.inf)


def forbid(logits_SV: Tensor, rows_M: Tensor, bits_MW: Tensor) -> None:
    """Write -inf where a row's mask has no bit; rows that are not named stay as they are.

    logits float32 contiguous; rows int64, no two alike, but any number below 0, which name none; bits int32, bit i
    of word w for token 32 * w + i.
    """
    if not len(rows_M):
        return
    if on_gpu(logits_SV, rows_M, bits_MW):
        from headrace.kernels.gpu import forbid as gpu  # needs triton, which only GPU builds of torch bring

        gpu.forbid(logits_SV, rows_M, bits_MW)
    elif bits_MW.is_cuda or not logits_SV.is_contiguous():
        forbid_ref(logits_SV, rows_M, bits_MW)
    else:
        _row_by_row(logits_SV.numpy(), rows_M.numpy(), bits_MW.numpy())


def _row_by_row(logits_SV: np.ndarray, rows_M: np.ndarray, bits_MW: np.ndarray) -> None:
    """Grammars mostly allow few tokens: then the row is written without being read."""
    vocab = logits_SV.shape[1]
    for n, bits_W in zip(rows_M, bits_MW, strict=True):
        if n < 0:
            continue
        row = logits_SV[n]
        allowed = np.unpackbits(bits_W.view(np.uint8), bitorder="little", count=vocab).view(np.bool_)
        if np.count_nonzero(allowed) < vocab // 4:
            ids = np.flatnonzero(allowed)
            kept = row[ids]
            row.fill(-np.inf)
            row[ids] = kept
        else:
            np.copyto(row, -np.inf, where=~allowed)
