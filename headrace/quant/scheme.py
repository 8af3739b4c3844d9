"""The contract of a quantization scheme: what it stores for a weight, how it multiplies by it, how it splits.

A weight W has N rows (outputs) and K columns (inputs); x @ W.T is what a layer computes. A scheme keeps W as a few
tensors with names, `Packed`. Schemes are found by name in the files of quant/schemes, each of which has SCHEMES.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.kernels.activation import silu_mul
from headrace.kernels.matmul import linear
from headrace.kernels.norm import Norm, add_rms_norm, rms_norm
from headrace.quant.grid import Grid

Packed = Mapping[str, Tensor]
Granularity = Literal["tensor", "channel", "group", "block"]
Activation = Literal["int8", "fp8"]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a scheme does to numbers; the rest of a scheme is where it puts the bits.

    bits         of a stored value, without scales
    kind         of a stored value
    granularity  who shares a scale: all of a weight, a row ("channel"), `group` columns of a row ("group"), or
                 `group` columns of `group` rows ("block")
    group        columns that share a scale; 0 where that is a whole row or the whole weight
    symmetric    zero is stored as zero; otherwise groups have a zero point or a minimum
    activation   what inputs are rounded to, each token with a scale of its own; None where they stay as they are
    static       inputs have one scale from calibration instead
    """

    bits: float
    kind: Literal["int", "float"]
    granularity: Granularity
    group: int = 0
    symmetric: bool = True
    activation: Activation | None = None
    static: bool = False


@dataclass(frozen=True, slots=True)
class Axes:
    """How many rows (columns) of the weight one step along a tensor's first (second) axis stands for; 0 for none.

    A tensor without rows belongs to the weight as a whole: every part of a weight divided by rows has all of it.
    """

    rows: int = 1
    columns: int = 1


@dataclass(frozen=True)
class Scheme:
    """How one kind of quantized weight is packed, unpacked and multiplied.

    name    as it is written on command lines and in recipes
    error   the most that a number may change when packed, as a share of the largest of those it shares a scale with
    """

    name: str
    spec: Spec
    error: float

    @property
    def axes(self) -> Mapping[str, Axes]:
        """Of each tensor that a packed weight may have, "weight" always among them."""
        raise NotImplementedError

    @property
    def grid(self) -> Grid | None:
        """Its values, where those of a row can be chosen one by one, by scales known before; None where they cannot."""
        return None

    def fits(self, rows: int, columns: int) -> str | None:
        """Why a weight of this shape cannot be packed; None where it can."""
        group = self.spec.group
        if self.spec.granularity == "group" and columns % group:
            other = next((g for g in (128, 64, 32, 16) if g < group and not columns % g), None)
            better = f"; groups of {other} would" if other else ""
            return f"groups of {group} do not divide {columns} columns{better}"
        return None

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        """Round a weight of any float dtype to the nearest that the scheme can hold. The shape must fit.

        Here by the grid; a scheme without one says how itself.
        """
        grid, wide_NK = self.grid, weight_NK.float()
        assert grid is not None
        scale, zero = grid.scales(wide_NK, weight_NK.dtype)
        return self.of_values(grid.rounded(wide_NK, scale, zero), scale, zero)

    def of_values(self, values_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> dict[str, Tensor]:
        """Packed, from values on its grid."""
        packed = {"weight": values_NK, "scale": scale_NG.contiguous()}
        return packed if zero_NG is None else {**packed, "zero": zero_NG.to(torch.int8)}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K] that the tensors stand for, computed in float32."""
        raise NotImplementedError

    def seen(self, packed: Packed, x: Tensor) -> Tensor:
        """Inputs as the product sees them: x itself, or x rounded to `spec.activation` and back."""
        return x

    def apply(self, packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] times the weight, plus bias, as [..., N] in x's dtype. This product defines the scheme."""
        return linear(self.seen(packed, x), self.unpack(packed, x.dtype), bias)

    def normed(
        self, packed: Packed, x_TK: Tensor, residual_TK: Tensor | None, norm: Norm, *,
        bias: Tensor | None = None, gated: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(apply(rms_norm(x + residual)), x + residual); without a residual the second is x itself.

        `gated`: rows are gate then up, and what is given is silu(gate) * up. For schemes with kernels that fuse.
        """
        if residual_TK is None:
            x_TK, total_TK = rms_norm(x_TK, *norm), x_TK
        else:
            x_TK, total_TK = add_rms_norm(x_TK, residual_TK, *norm)
        out_TN = self.apply(packed, x_TK, bias)
        return silu_mul(out_TN) if gated else out_TN, total_TK

    def gates(self, packed: Packed, x_TK: Tensor) -> bool:
        """Whether for so many tokens `apply_gated` is faster than `apply` after a product that did the activation."""
        return False

    def apply_gated(self, packed: Packed, gate_up_TF: Tensor, bias: Tensor | None = None) -> Tensor:
        """apply(silu(gate) * up) for [T, 2K] with gate first."""
        return self.apply(packed, silu_mul(gate_up_TF), bias)

    def prepare(self, packed: Packed) -> Packed:
        """The tensors as the kernels of their device want them: called once on the whole of what a layer has.

        From then on they are seen by apply, normed, gates, apply_gated and unpack alone.
        """
        return packed

    def size(self, packed: Packed) -> tuple[int, int]:
        """N and K of a packed weight."""
        weight = packed["weight"]
        axes = self.axes["weight"]
        return weight.shape[0] * axes.rows, weight.shape[1] * axes.columns


SAMPLE = 128
"""Rows that bytes are counted with: a block's."""


def packed_bytes(scheme: Scheme, rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes that a weight of this shape, which must fit, and dtype has when packed; made up of a few rows of it."""
    packed = scheme.pack(torch.zeros(SAMPLE, columns, dtype=dtype, device="cpu"))
    return sum(-(-tensor.nbytes * rows // SAMPLE) for tensor in packed.values())


def part(
    scheme: Scheme, packed: Packed, start: int, stop: int, split: Literal["in", "out"]
) -> dict[str, Tensor]:
    """Rows ("out") or columns ("in") start to stop of a packed weight, as views where tensors divide.

    Raises Refused where the cut is not between two groups, or where columns are stored in an order of their own.
    """
    cut: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        axes = scheme.axes[name]
        step, dim = (axes.rows, 0) if split == "out" else (axes.columns, 1)
        if not step:
            if name == "order" and split == "in":
                raise Refused(f"columns of a {scheme.name} weight with an order of its own cannot be divided")
            cut[name] = tensor
            continue
        whole = tensor.shape[dim] * step  # the last step may stand for less than it could
        if start % step or (stop % step and stop < whole - step + 1):
            what = "rows" if split == "out" else "columns"
            raise Refused(
                f"{scheme.name} cannot be cut at {what} {start} and {stop}: {name} has one for {step}"
            )
        cut[name] = tensor.narrow(dim, start // step, -(-stop // step) - start // step)
    return cut


def join(scheme: Scheme, parts: Sequence[Packed]) -> dict[str, Tensor] | None:
    """Weights on top of each other as one, or None where that would change a number.

    That is so where what belongs to a weight as a whole differs, or where a block would span two of them.
    """
    first = parts[0]
    if any(part.keys() != first.keys() for part in parts):
        return None
    joined: dict[str, Tensor] = {}
    for name, tensor in first.items():
        rows = scheme.axes[name].rows
        others = [part[name] for part in parts]
        if not rows:
            if not all(torch.equal(tensor, other) for other in others[1:]):
                return None
            joined[name] = tensor
            continue
        if any(scheme.size(part)[0] % rows for part in parts[:-1]):
            return None
        if any(other.dtype != tensor.dtype or other.shape[1:] != tensor.shape[1:] for other in others):
            return None
        joined[name] = torch.cat([other.contiguous() for other in others])
    return joined
