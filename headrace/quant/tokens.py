"""Inputs of a layer rounded to 8 bits: each token (or piece of one) by a scale of its own, or all by one."""

import torch
from torch import Tensor


def rounded(x: Tensor, largest: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x / scale in `dtype`, scale float32 [..., 1]): the largest number of the last axis becomes `largest`."""
    peak = x.abs().amax(-1, keepdim=True).float()
    scale = torch.where(peak > 0, peak / largest, torch.ones_like(peak))
    return cast(x.float() / scale, largest, dtype), scale


def static(x: Tensor, scale: Tensor, largest: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `rounded`, by one scale for all; what is too large for it is clipped."""
    return cast(x.float() / scale.float(), largest, dtype), scale.float().reshape(1)


def cast(x: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, nearest and clipped: conversions to float8 do not saturate by themselves."""
    x = x if dtype.is_floating_point else x.round()
    return x.clamp(-largest, largest).to(dtype)
