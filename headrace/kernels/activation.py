"""Gated activations of a feed-forward block: act(gate) * up, from one fused projection."""

from torch import Tensor
from torch.nn import functional

from headrace.kernels import configs, fixed
from headrace.kernels.launch import on_gpu


def silu_mul_ref(gate_up_TF: Tensor) -> Tensor:
    """The definition of silu_mul."""
    gate, up = gate_up_TF.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_mul_ref(gate_up_TF: Tensor) -> Tensor:
    """The definition of gelu_mul."""
    gate, up = gate_up_TF.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


def silu_mul(gate_up_TF: Tensor, deterministic: bool = False) -> Tensor:
    """silu(gate) * up; gate_up [T, 2F] holds gate then up; returns [T, F] (Shazeer 2020, SwiGLU).

    With `deterministic` a row's bits do not depend on the other rows.
    """
    if on_gpu(gate_up_TF):
        from headrace.kernels.gpu.activation import gated

        return gated(gate_up_TF, "silu", configs.pdl(gate_up_TF.device))
    return fixed.whole_rows(silu_mul_ref, gate_up_TF) if deterministic else silu_mul_ref(gate_up_TF)


def gelu_mul(gate_up_TF: Tensor, deterministic: bool = False) -> Tensor:
    """gelu(gate) * up with the tanh approximation; shapes as silu_mul (Shazeer 2020, GEGLU)."""
    if on_gpu(gate_up_TF):
        from headrace.kernels.gpu.activation import gated

        return gated(gate_up_TF, "gelu", configs.pdl(gate_up_TF.device))
    return fixed.whole_rows(gelu_mul_ref, gate_up_TF) if deterministic else gelu_mul_ref(gate_up_TF)
