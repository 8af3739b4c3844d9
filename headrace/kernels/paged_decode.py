"""Attention of rows with one query over a paged cache: the decoding part of a step."""

import torch
from torch import Tensor

from headrace.kernels.launch import on_gpu
from headrace.kernels.paged import Pages, Scores, paged_attention


def paged_decode(q_THD: Tensor, pages: Pages, scores: Scores) -> Tensor:
    """Attention [T, H, D] of the rows that have exactly one query; zero for padding after the last row.

    On a GPU the tokens of other rows are left undefined. For repeated use see attention/triton.py, which keeps
    the workspace.
    """
    if not on_gpu(q_THD):
        return paged_attention(q_THD, pages, scores, least=1, most=1)
    from headrace.kernels import configs
    from headrace.kernels.gpu import paged_decode as gpu

    device = q_THD.device
    config = configs.paged_decode(configs.capability(device), q_THD.shape[-1])
    programs = configs.multiprocessors(device) * config.programs
    out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=device)
    gpu.decode(q_THD, pages, scores, out, gpu.Workspace(device), config=config, programs=programs)
    return out
