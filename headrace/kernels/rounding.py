"""Inputs of a layer rounded to 8 bits, alone or in one pass with what comes before: norm and residual, or the gate.

T tokens, K inputs. Each token has a scale of its own, or one for each `group` of its inputs, or all have a `fixed` one
from calibration. A kernel rounds as the definition does: norm and activation to the input's type, then to 8 bits.
"""

from typing import Literal

import torch
from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.activation import silu_mul
from headrace.kernels.launch import TENSOR_CORE_TYPES, on_gpu
from headrace.kernels.norm import add_rms_norm, rms_norm

Kind = Literal["fp8", "int8"]
LARGEST: dict[str, float] = {"fp8": 448.0, "int8": 127.0}
DTYPES: dict[str, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
MOST_COLUMNS = 1 << 15
"""A row is held by one program."""


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


def kernels_fit(x: Tensor, columns: int, *others: Tensor | None) -> bool:
    """Whether a kernel rounds these: on a GPU with 8-bit floats, rows not too long for one program."""
    return (
        x.dim() == 2
        and x.shape[0] > 0
        and x.dtype in (*TENSOR_CORE_TYPES, torch.float32)
        and columns <= MOST_COLUMNS
        and on_gpu(x, *others)
        and configs.capability(x.device) >= (8, 9)
    )


def round_rows(
    x_TK: Tensor, kind: Kind, group: int = 0, fixed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(values in 8 bits [T, K], scale float32 [T], or [T, ceil(K / group)] where there are groups).

    What is beyond the last column counts as zero.
    """
    if kernels_fit(x_TK, x_TK.shape[1], fixed):
        from headrace.kernels.gpu.rounding import Rounding, round_plain

        return round_plain(x_TK, Rounding(kind, group, fixed), configs.pdl(x_TK.device))
    tokens, columns = x_TK.shape
    if fixed is not None:
        values, scale = static(x_TK, fixed, LARGEST[kind], DTYPES[kind])
        return values, scale.expand(tokens)
    if not group:
        values, scale = rounded(x_TK, LARGEST[kind], DTYPES[kind])
        return values, scale.flatten()
    padded = torch.nn.functional.pad(x_TK, (0, -columns % group)).unflatten(1, (-1, group))
    values, scale = rounded(padded, LARGEST[kind], DTYPES[kind])
    return values.flatten(1)[:, :columns].contiguous(), scale.squeeze(2)


def norm_round(
    x_TK: Tensor, residual_TK: Tensor | None, weight_K: Tensor, eps: float, offset: float, kind: Kind,
    group: int = 0, fixed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(values, scale, total): round_rows(rms_norm(x + residual)) and the sum; x itself without a residual."""
    if kernels_fit(x_TK, x_TK.shape[1], residual_TK, weight_K, fixed):
        from headrace.kernels.gpu.rounding import Rounding, round_normed

        how = Rounding(kind, group, fixed)
        return round_normed(x_TK, residual_TK, weight_K, eps, offset, how, configs.pdl(x_TK.device))
    if residual_TK is None:
        normed_TK, total_TK = rms_norm(x_TK, weight_K, eps, offset), x_TK
    else:
        normed_TK, total_TK = add_rms_norm(x_TK, residual_TK, weight_K, eps, offset)
    return *round_rows(normed_TK, kind, group, fixed), total_TK


def silu_mul_round(
    gate_up_TF: Tensor, kind: Kind, group: int = 0, fixed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """round_rows(silu(gate) * up) for [T, 2K] with gate first."""
    if kernels_fit(gate_up_TF, gate_up_TF.shape[1] // 2, fixed):
        from headrace.kernels.gpu.rounding import Rounding, round_gated

        return round_gated(gate_up_TF, Rounding(kind, group, fixed), configs.pdl(gate_up_TF.device))
    return round_rows(silu_mul(gate_up_TF), kind, group, fixed)
