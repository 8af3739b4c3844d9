"""The one linear layer: alone or several projections fused into one product, and how it splits over ranks."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from headrace.kernels.activation import silu_mul
from headrace.kernels.launch import on_gpu
from headrace.kernels.matmul import linear, norm_linear
from headrace.kernels.norm import Norm
from headrace.nn.norm import RMSNorm
from headrace.nn.packed import PackedRows
from headrace.nn.prepacked import Prepacked
from headrace.quant.scheme import Packed, Scheme

Split = Literal["in", "out"] | None


class Linear(nn.Module):
    """y = x W^T + b with W [sum(outputs), inputs].

    outputs   one size, or one per fused projection; the rows of W are theirs in order
    fused     the names that the projections have in a checkpoint; () when the layer goes by its own name
    split     over ranks: by "in"put columns (results are summed), by "out"put rows, or not at all

    With `deterministic` set a token's result does not depend on the others of the step.
    A quantized layer has `packed`, and its weight has no elements: see `become`.
    """

    deterministic = False

    def __init__(
        self,
        inputs: int,
        outputs: int | Sequence[int],
        bias: bool = False,
        fused: Sequence[str] = (),
        split: Split = None,
    ):
        super().__init__()
        self.inputs = inputs
        self.outputs = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        self.fused = tuple(fused)
        self.split: Split = split
        assert not self.fused or len(self.fused) == len(self.outputs), "one size per fused name"
        rows = sum(self.outputs)
        self.weight = nn.Parameter(torch.empty(rows, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None
        self.packed: PackedRows | Prepacked | None = None

    def become(self, parts: Sequence[tuple[Scheme, Packed]], prepare: bool = False) -> None:
        """Be quantized from now on: rows of `parts` in order instead of a weight, whose memory is given up.

        `prepare`: only multiply by them from now on, on the device they are on, and lay them out for that.
        """
        packed = PackedRows(parts)
        shapes = [(part.rows, part.columns) for part in packed.weights]
        whole = (sum(rows for rows, _ in shapes), self.inputs)
        assert whole == (sum(self.outputs), self.inputs), f"{shapes} for {whole}"
        self.packed = packed
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        if prepare:
            packed.prepare()

    def prepack(
        self, weight_NK: Tensor, turns: bool = False, made: Callable[[Tensor], Tensor] = Tensor.float
    ) -> None:
        """Multiply 8-bit integers on a CPU from now on, by this weight rounded; `turns`, `made`: see Prepacked.of."""
        assert weight_NK.shape == (sum(self.outputs), self.inputs)
        self.packed = Prepacked.of(weight_NK, turns, made)
        self.weight = nn.Parameter(torch.empty(0, dtype=weight_NK.dtype, device="cpu"), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., sum(outputs)], the projections side by side."""
        if self.packed is not None:
            return self.packed(x, self.bias)
        return linear(x, self.weight, self.bias, deterministic=self.deterministic)

    def normed(
        self, norm: RMSNorm, x_TE: Tensor, residual_TE: Tensor | None, gated: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(self(norm(x + residual)), x + residual), in one pass over memory where a kernel does it.

        `gated`: silu of the first projection times the second. A residual of None counts as zero.
        """
        if self.packed is None and on_gpu(x_TE, self.weight):
            return norm_linear(
                x_TE, residual_TE, norm.weight, norm.eps, norm.offset, self.weight, self.bias,
                gated=gated, deterministic=self.deterministic,
            )  # fmt: skip
        packed = self.packed.whole if isinstance(self.packed, PackedRows) else None
        if packed is not None and on_gpu(x_TE):
            with_norm = Norm(norm.weight, norm.eps, norm.offset)
            return packed.scheme.normed(
                packed.tensors, x_TE, residual_TE, with_norm, bias=self.bias, gated=gated
            )
        x_TE, residual_TE = norm.add(x_TE, residual_TE)
        out = self(x_TE)
        return silu_mul(out, self.deterministic) if gated else out, residual_TE

    def gates(self, x_TE: Tensor) -> bool:
        """Whether for so many tokens `gated` is faster than an activation by the layer before."""
        packed = self.packed.whole if isinstance(self.packed, PackedRows) else None
        return packed is not None and on_gpu(x_TE) and packed.scheme.gates(packed.tensors, x_TE)

    def gated(self, gate_up_TF: Tensor) -> Tensor:
        """self(silu(gate) * up) for [T, 2 x inputs] with gate first, where `gates` said so."""
        assert isinstance(self.packed, PackedRows)
        assert self.packed.whole is not None
        packed = self.packed.whole
        return packed.scheme.apply_gated(packed.tensors, gate_up_TF, self.bias)
