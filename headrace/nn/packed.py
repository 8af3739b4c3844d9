"""Quantized weights inside a layer: a scheme with its tensors, and several of them as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.quant.scheme import Packed, Scheme, join


class PackedWeight(nn.Module):
    """N rows of K columns as `scheme` keeps them. Its tensors are buffers: they are never cast or trained."""

    def __init__(self, scheme: Scheme, packed: Packed):
        super().__init__()
        self.scheme = scheme
        self.rows, self.columns = scheme.size(packed)
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names that the scheme gives them."""
        return dict(self.named_buffers(recurse=False))

    def prepare(self) -> None:
        """Let the scheme lay out its tensors for the device they are on."""
        tensors = self.tensors
        for name in tensors:
            delattr(self, name)
        for name, tensor in self.scheme.prepare(tensors).items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] to [..., N]."""
        return self.scheme.apply(self.tensors, x, bias)


class PackedRows(nn.Module):
    """Packed weights on top of each other: one where they can be joined, else side by side, never rounded again."""

    def __init__(self, parts: Sequence[tuple[Scheme, Packed]]):
        super().__init__()
        self.parts = nn.ModuleList(PackedWeight(scheme, packed) for scheme, packed in joined(parts))

    @property
    def weights(self) -> list[PackedWeight]:
        """`parts`, in order."""
        return [part for part in self.parts if isinstance(part, PackedWeight)]

    @property
    def whole(self) -> PackedWeight | None:
        """The only part; None where there are several."""
        first, *others = self.weights
        return None if others else first

    def prepare(self) -> None:
        """Let schemes lay out their tensors for their device's kernels."""
        for each in self.weights:
            each.prepare()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] to [..., all rows]."""
        if len(self.parts) == 1:
            return self.parts[0](x, bias)
        out = torch.cat([part(x) for part in self.parts], dim=-1)
        return out if bias is None else out + bias


def joined(parts: Sequence[tuple[Scheme, Packed]]) -> list[tuple[Scheme, Packed]]:
    """Neighbours of one scheme joined where that changes nothing."""
    done: list[tuple[Scheme, Packed]] = []
    for scheme, packed in parts:
        if done and done[-1][0] == scheme and (both := join(scheme, [done[-1][1], packed])) is not None:
            done[-1] = scheme, both
        else:
            done.append((scheme, packed))
    return done
