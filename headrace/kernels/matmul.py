"""Linear layers, alone and fused with the norm before and the activation or residual after them.

T tokens, K inputs, N outputs. Each function is defined by its composition of rms_norm, torch's linear and
silu_mul; on a GPU a few tokens go to our kernels (bound by the weights' bytes), many to the library's product.
A fused kernel keeps float32 where the composition rounds in between: they differ by rounding only.

With `deterministic` a row of the result depends on that row alone, never on how many tokens share the call.
"""

import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import fixed
from headrace.kernels.activation import silu_mul
from headrace.kernels.launch import TENSOR_CORE_TYPES, on_gpu
from headrace.kernels.norm import add_rms_norm, rms_norm


def kernels_fit(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether our kernels take these tensors: on the GPU, 16-bit, one type, weights row after row."""
    return (
        x.dtype in TENSOR_CORE_TYPES
        and x.dtype == weight.dtype
        and x.dim() == 2
        and x.shape[0] > 0
        and x.shape[1] >= 16
        and weight.is_contiguous()
        and on_gpu(x, weight, *others)
    )


def plain(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, deterministic: bool) -> Tensor:
    """torch's own product."""
    return (fixed.product if deterministic else functional.linear)(x, weight_NK, bias_N)


def linear(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, *,
    out_dtype: torch.dtype | None = None, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    """x @ weight.T + bias as [T, N], in x's dtype unless `out_dtype` is given."""
    if kernels_fit(x_TK, weight_NK, bias_N):
        from headrace.kernels.gpu.matmul import Fusion, product

        return product(x_TK, weight_NK, Fusion(bias=bias_N), out_dtype, deterministic)[0]
    out = plain(x_TK, weight_NK, bias_N, deterministic)
    return out if out_dtype is None else out.to(out_dtype)


def linear_silu_mul(
    x_TK: Tensor, weight_gate_up: Tensor, bias: Tensor | None = None, *, deterministic: bool = False
) -> Tensor:
    """silu(x @ gate.T) * (x @ up.T) as [T, N] for a fused weight [2N, K], gate first."""
    if kernels_fit(x_TK, weight_gate_up, bias):
        from headrace.kernels.gpu.matmul import Fusion, product

        return product(x_TK, weight_gate_up, Fusion(bias=bias, gated=True), None, deterministic)[0]
    return silu_mul(plain(x_TK, weight_gate_up, bias, deterministic), deterministic)


def norm_linear(
    x_TK: Tensor, residual_TK: Tensor | None, norm_weight_K: Tensor, eps: float, offset: float,
    weight_NK: Tensor, bias_N: Tensor | None = None, *,
    gated: bool = False, deterministic: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(linear(rms_norm(x + residual)), x + residual); without a residual the second is x itself.

    `gated` puts linear_silu_mul in the place of linear: weight [2N, K], gate first, output [T, N].
    """
    if kernels_fit(x_TK, weight_NK, residual_TK, norm_weight_K, bias_N):
        from headrace.kernels.gpu.matmul import Fusion, product

        fusion = Fusion(bias_N, norm_weight_K, eps, offset, before=residual_TK, gated=gated)
        return product(x_TK, weight_NK, fusion, None, deterministic)
    if residual_TK is None:
        normed, total = rms_norm(x_TK, norm_weight_K, eps, offset), x_TK
    else:
        normed, total = add_rms_norm(x_TK, residual_TK, norm_weight_K, eps, offset)
    out = plain(normed, weight_NK, bias_N, deterministic)
    return silu_mul(out, deterministic) if gated else out, total
