"""Root-mean-square normalization, alone or after the residual add (Zhang & Sennrich 2019, eq. 4)."""

from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.launch import on_gpu


class Norm(NamedTuple):
    """What a norm is made of, in the order of the functions' arguments."""

    weight: Tensor
    eps: float
    offset: float = 0.0


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The definition of rms_norm."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * (weight.float() + offset)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Normalize the last dimension: x / rms(x) * (weight + offset), computed in float32, in x's dtype.

    x [..., N], weight [N]. `offset` is 1.0 for checkpoints that store weight - 1 (Gemma).
    """
    if on_gpu(x, weight):
        from headrace.kernels.gpu.norm import normalize

        return normalize(x, None, weight, eps, offset, configs.pdl(x.device))[0]
    if x.dtype == weight.dtype == torch.float32:
        return _few_calls(x, weight, eps, offset)
    return rms_norm_ref(x, weight, eps, offset)


def _few_calls(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """The definition in float32 with half as many calls: of one token, these are what takes time."""
    size = x.shape[-1]
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    shrink = length.square_().mul_(1 / size).add_(eps).rsqrt_()
    return (x * shrink).mul_(weight if offset == 0.0 else weight + offset)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual): one pass over memory on a GPU; neither input is changed."""
    if on_gpu(x, residual, weight) and x.dtype == residual.dtype:
        from headrace.kernels.gpu.norm import normalize

        return normalize(x, residual, weight, eps, offset, configs.pdl(x.device))
    total = x + residual
    return rms_norm(total, weight, eps, offset), total
