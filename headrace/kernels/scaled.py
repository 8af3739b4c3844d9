"""Linear layers with 8-bit weights, alone and fused with the norm before and the activation around them.

T tokens, K inputs, N outputs. Each function is defined by its composition of rounding, a product in float32 (or of
integers) and scales. On a GPU one token goes to a kernel that rounds its inputs by itself, up to 64 to one bound by the
weights' bytes, more to the library's product or our own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import configs, rules
from headrace.kernels.activation import silu_mul
from headrace.kernels.launch import TENSOR_CORE_TYPES, on_gpu
from headrace.kernels.norm import add_rms_norm, rms_norm
from headrace.kernels.rounding import Kind, norm_round, round_rows, silu_mul_round

GROUP = 128
FEW = 64
"""Tokens up to which weights are the tall side of a product that Triton fetches for."""
LONGEST = 1 << 15
"""Inputs that a program's registers hold."""


@dataclass(frozen=True, slots=True)
class Weight8:
    """A weight in 8 bits and how it is multiplied by.

    weight   [N, K], float8_e4m3fn or int8
    scale    [N, 1] of any float dtype; where `blocked` [N / 128, K / 128], and 128 inputs share a scale, too
    rounded  inputs are rounded to the weight's kind
    fixed    the scale of all inputs [1], where they do not have their own
    """

    weight: Tensor
    scale: Tensor
    rounded: bool = True
    fixed: Tensor | None = None
    bias: Tensor | None = None
    blocked: bool = False

    @property
    def kind(self) -> Kind:
        """Of the weight."""
        return "int8" if self.weight.dtype == torch.int8 else "fp8"

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0 for all of a token."""
        return GROUP if self.blocked else 0


def gemv_fits(x: Tensor, w: Weight8, *others: Tensor | None) -> bool:
    """Whether the kernel for one token takes these."""
    return (
        x.dim() == 2
        and x.shape[0] == 1
        and not w.blocked
        and x.shape[1] <= LONGEST
        and x.shape[1] % 16 == 0
        and x.stride(1) == 1
        and (w.rounded or x.dtype != torch.float32)  # halves hold what 16 bits say, and no more
        and w.weight.is_contiguous()
        and on_gpu(x, w.weight, w.scale, w.fixed, w.bias, *others)
        and configs.capability(x.device) >= (8, 9)
    )


def tiles_fit(values: Tensor, w: Weight8) -> bool:
    """Whether TMA and the matrix units take these."""
    return (
        values.dim() == 2
        and values.shape[0] > 0
        and values.shape[1] % 16 == 0
        and on_gpu(values, w.weight, w.scale)
        and w.weight.is_contiguous()
        and values.is_contiguous()
        and values.data_ptr() % 16 == 0
        and w.weight.data_ptr() % 16 == 0
        and configs.capability(values.device) >= (9, 0)
    )


def fetched(values: Tensor, w: Weight8) -> bool:
    """Whether gpu/ring.py takes these: a scale per row, so many tokens as it is best for, on some devices alone."""
    return (
        w.rounded
        and not w.blocked
        and configs.fetches8(configs.capability(values.device), values.shape[0])
        and tiles_fit(values, w)
    )


def _fetched(
    values: Tensor, x_scale: Tensor, w: Weight8, out_dtype: torch.dtype, gated: bool = False
) -> Tensor:
    from headrace.kernels.gpu.ring import ring

    (tokens, k), n, device = values.shape, w.weight.shape[0], values.device
    config = rules.ring_rule(tokens, n // 2 if gated else n, k, gated, 1, configs.multiprocessors(device))
    pdl = configs.pdl(device)
    return ring(values, w.weight, config, w.bias, out_dtype, pdl, gated, (x_scale, w.scale))


def _one_token(
    x: Tensor, w: Weight8, gated: bool = False, residual: Tensor | None = None, gain: Tensor | None = None,
    eps: float = 0.0, offset: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from headrace.kernels.gpu.gemv8 import Around8, gemv8

    rows, k = w.weight.shape
    config = configs.gemv8(configs.capability(x.device), rows // 2 if gated else rows, k, gated)
    around = Around8(w.rounded, w.fixed, w.bias, gain, eps, offset, residual, gated)
    programs = configs.multiprocessors(x.device) * config.programs
    return gemv8(x, w.weight, w.scale, config, programs, around, None, configs.pdl(x.device))


def linear8(x: Tensor, w: Weight8) -> Tensor:
    """[..., K] to [..., N] in x's dtype."""
    if gemv_fits(x, w):
        return _one_token(x, w)[0]
    flat = x.reshape(-1, x.shape[-1])
    if w.rounded:
        values, scale = round_rows(flat, w.kind, w.group, w.fixed)
        out = scaled_linear(values, scale, w, x.dtype)
    else:
        out = widened_linear(flat, w)
    return out.view(*x.shape[:-1], w.weight.shape[0])


def norm_linear8(
    x_TK: Tensor, residual_TK: Tensor | None, gain_K: Tensor, eps: float, offset: float, w: Weight8,
    gated: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(linear8(rms_norm(x + residual)), x + residual); `gated`: silu of half the outputs times the other half."""
    if gemv_fits(x_TK, w, residual_TK, gain_K):
        return _one_token(x_TK, w, gated, residual_TK, gain_K, eps, offset)
    if w.rounded:
        values, scale, total = norm_round(x_TK, residual_TK, gain_K, eps, offset, w.kind, w.group, w.fixed)
        if gated and fetched(values, w):
            return _fetched(values, scale, w, x_TK.dtype, gated), total
        out = scaled_linear(values, scale, w, x_TK.dtype)
    else:
        if residual_TK is None:
            normed, total = rms_norm(x_TK, gain_K, eps, offset), x_TK
        else:
            normed, total = add_rms_norm(x_TK, residual_TK, gain_K, eps, offset)
        out = widened_linear(normed, w)
    return silu_mul(out) if gated else out, total


def gated_linear8(gate_up_TF: Tensor, w: Weight8) -> Tensor:
    """linear8(silu(gate) * up) for [T, 2K] with gate first."""
    if not w.rounded:
        return linear8(silu_mul(gate_up_TF), w)
    values, scale = silu_mul_round(gate_up_TF, w.kind, w.group, w.fixed)
    return scaled_linear(values, scale, w, gate_up_TF.dtype)


def scaled_linear(values_TK: Tensor, x_scale: Tensor, w: Weight8, out_dtype: torch.dtype) -> Tensor:
    """The product of rounded inputs as [T, N]: summed up, scaled, then the bias added.

    x_scale is float32 [T], or [T, K / 128] where the weight is blocked.
    """
    tokens, (n, k) = values_TK.shape[0], w.weight.shape
    if fetched(values_TK, w):
        return _fetched(values_TK, x_scale, w, out_dtype)
    if tiles_fit(values_TK, w):
        from headrace.kernels.gpu.tiles8 import skinny8, wide8

        cap, pdl = configs.capability(values_TK.device), configs.pdl(values_TK.device)
        if tokens <= FEW:
            few = configs.skinny8(cap, tokens, n, k)
            return skinny8(values_TK, x_scale, w.weight, w.scale, few, w.bias, out_dtype, pdl)
        many = rules.blocked8(tokens) if w.blocked else configs.wide8(cap, tokens, n, k, w.kind)
        if many is not None or n % 16 or out_dtype not in TENSOR_CORE_TYPES:
            many = many or rules.blocked8(tokens)
            return wide8(values_TK, x_scale, w.weight, w.scale, many, w.bias, out_dtype, pdl)
    if w.kind == "fp8" and not w.blocked and library_fits(values_TK, w):
        return library(values_TK, x_scale, w, out_dtype)
    return scaled_linear_ref(values_TK, x_scale, w, out_dtype)


def library_fits(values: Tensor, w: Weight8) -> bool:
    """Whether torch's product of 8-bit floats with a scale per row takes these."""
    n, k = w.weight.shape
    return on_gpu(values) and not (n % 16 or k % 16) and configs.capability(values.device) >= (8, 9)


def library(values: Tensor, x_scale: Tensor, w: Weight8, out_dtype: torch.dtype, fast: bool = True) -> Tensor:
    """By torch, which is by cuBLAS. `fast`: sums are not brought to full float32 in between, as vLLM has it, too."""
    # Only a bias of the output's type is added there, and only for 16 bits.
    inside = w.bias if w.bias is not None and w.bias.dtype == out_dtype in TENSOR_CORE_TYPES else None
    out = torch.ops.aten._scaled_mm.default(
        values, w.weight.t(), x_scale.view(-1, 1), w.scale.float().view(1, -1), inside, out_dtype=out_dtype,
        use_fast_accum=fast,
    )  # fmt: skip
    return out if w.bias is None or inside is not None else out + w.bias


def scaled_linear_ref(values: Tensor, x_scale: Tensor, w: Weight8, out_dtype: torch.dtype) -> Tensor:
    """The definition of scaled_linear."""
    if w.blocked:
        columns = values.shape[1]
        x = values.float() * x_scale.repeat_interleave(GROUP, 1)[:, :columns]
        out = x @ (w.weight.float() * spread(w.scale, *w.weight.shape)).T
    else:
        sums = whole_product(values, w.weight) if w.kind == "int8" else values.float() @ w.weight.float().T
        out = sums.float() * x_scale[:, None] * w.scale.float().flatten()
    return (out if w.bias is None else out + w.bias).to(out_dtype)


def widened_linear(x_TK: Tensor, w: Weight8) -> Tensor:
    """The product of inputs as they are: by weights brought to x's type."""
    if x_TK.shape[0] <= FEW and x_TK.dtype in TENSOR_CORE_TYPES and not w.blocked and tiles_fit(x_TK, w):
        from headrace.kernels.gpu.tiles8 import skinny8

        config = configs.skinny8(configs.capability(x_TK.device), x_TK.shape[0], *w.weight.shape)
        return skinny8(x_TK, None, w.weight, w.scale, config, w.bias, x_TK.dtype, configs.pdl(x_TK.device))
    scale = spread(w.scale, *w.weight.shape) if w.blocked else w.scale.float()
    return functional.linear(x_TK, (w.weight.float() * scale).to(x_TK.dtype), w.bias)


def whole_product(values_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """int8 times int8 as int32 [T, N], exact."""
    if values_TK.is_cuda:  # _int_mm there takes 17 rows or more, and multiples of 8
        return (values_TK.double() @ weight_NK.double().T).int()
    return torch.ops.aten._int_mm.default(values_TK, weight_NK.T)


def spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    """A scale per block as one per element, float32 [rows, columns]."""
    wide = scale.float().repeat_interleave(GROUP, 0)[:rows]
    return wide.repeat_interleave(GROUP, 1)[:, :columns]
