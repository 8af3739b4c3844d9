"""Attention of rows with several queries over a paged cache: the prompt part of a step."""

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.launch import on_gpu
from headrace.kernels.paged import Pages, Scores, paged_attention


def prefill_work(starts_np: np.ndarray, context_np: np.ndarray, span: int, least: int = 2) -> np.ndarray:
    """Pieces of `span` queries of the rows with at least `least`: int32 [W, 2] (row, first query), longest first."""
    queries = np.diff(starts_np)
    rows = np.flatnonzero(queries >= least)
    pieces = -(-queries[rows] // span)
    row = np.repeat(rows, pieces)
    first = (np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * span
    keys = context_np[row] - queries[row] + np.minimum(first + span, queries[row])
    order = np.argsort(-keys, kind="stable")
    return np.stack([row[order], first[order]], axis=1).astype(np.int32)


def paged_prefill(q_THD: Tensor, pages: Pages, scores: Scores) -> Tensor:
    """Attention [T, H, D] of the rows that have two queries or more.

    On a GPU the tokens of other rows are left undefined, else they are zero. For repeated use see
    attention/triton.py, which makes the list of work once per step.
    """
    if not on_gpu(q_THD):
        return paged_attention(q_THD, pages, scores, least=2)
    from headrace.kernels import configs
    from headrace.kernels.gpu import paged_prefill as gpu

    config = configs.paged_prefill(configs.capability(q_THD.device), q_THD.shape[-1])
    span = config.rows // (q_THD.shape[1] // pages.k.shape[2])
    work = prefill_work(pages.starts.cpu().numpy(), pages.context.cpu().numpy(), span)
    out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    gpu.prefill(q_THD, pages, scores, out, torch.from_numpy(work).to(q_THD.device), config=config)
    return out
