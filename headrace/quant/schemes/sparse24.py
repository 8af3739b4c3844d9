"""Weights of which two in every four columns are zero and not stored: 2:4 sparsity (Mishra et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.rounding import cast, rounded
from headrace.quant.scheme import Axes, Packed, Scheme, Spec
from headrace.quant.schemes.fp8 import E4M3, LARGEST, scale_of

OF, KEPT, BYTE = 4, 2, 8


@dataclass(frozen=True)
class Sparse24(Scheme):
    """weight [N, K / 2], the numbers kept, in order; mask uint8 [N, K / 8]: bit j of byte c says 8c + j is kept.

    The numbers keep their dtype, or (`spec.bits` 8) are float8_e4m3fn with scale [N, 1], and so are inputs.
    """

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"weight": Axes(1, OF // KEPT), "mask": Axes(1, BYTE), "scale": Axes(1, 0)}

    def fits(self, rows: int, columns: int) -> str | None:
        return f"{columns} columns are not whole bytes of a mask of {BYTE}" if columns % BYTE else None

    def pack(self, weight_NK: Tensor) -> dict[str, Tensor]:
        """See Scheme. The two largest of four are kept; a weight pruned already stays as it is."""
        fours = weight_NK.unflatten(1, (-1, OF))
        places = fours.abs().float().topk(KEPT, dim=2, sorted=False).indices.sort(2).values
        mask = torch.zeros(fours.shape, dtype=torch.uint8, device=fours.device).scatter_(2, places, 1)
        bits = mask.flatten(1).unflatten(1, (-1, BYTE)) << _places(mask)
        kept = fours.gather(2, places).flatten(1)
        packed = {"weight": kept, "mask": bits.sum(2).to(torch.uint8)}
        if self.spec.activation is None:
            return packed
        scale = scale_of(weight_NK.abs().amax(1, keepdim=True), weight_NK.dtype)
        return {**packed, "weight": cast(kept.float() / scale.float(), LARGEST, E4M3), "scale": scale}

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        kept, mask = packed["weight"].float(), packed["mask"]
        if "scale" in packed:
            kept = kept * packed["scale"].float()
        whole = kept.new_zeros(len(mask), mask.shape[1] * BYTE)
        return whole.masked_scatter_(chosen(mask).flatten(1).bool(), kept).to(dtype)

    def seen(self, packed: Packed, x: Tensor) -> Tensor:
        if self.spec.activation is None:
            return x
        values, scale = rounded(x, LARGEST, E4M3)
        return (values.float() * scale).to(x.dtype)


def chosen(mask: Tensor) -> Tensor:
    """Which columns a mask [N, K / 8] keeps: uint8 [N, K / 4, 4] of ones and zeros."""
    return ((mask.unsqueeze(2) >> _places(mask)) & 1).flatten(1).unflatten(1, (-1, OF))


def _places(like: Tensor) -> Tensor:
    """Of the bits of a byte."""
    return torch.arange(BYTE, dtype=torch.uint8, device=like.device)


# What is dropped may be as large as what is kept.
SCHEMES = {
    "sparse24": Sparse24("sparse24", Spec(16, "float", "group", OF), 1.0),
    "sparse24_fp8": Sparse24("sparse24_fp8", Spec(8, "float", "channel", activation="fp8"), 1.0),
}
