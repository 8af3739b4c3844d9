"""Quantized weights inside a layer: a scheme with its tensors, and several of them as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.quant.scheme import Packed, Scheme, join, part


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

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """[N, K]."""
        return self.scheme.unpack(self.tensors, dtype)

    def extra_repr(self) -> str:
        """For printing a model."""
        return f"{self.columns} -> {self.rows}, {self.scheme.name}"


class PackedRows(nn.Module):
    """Packed weights on top of each other: one where they can be joined, else side by side, never rounded again."""

    prepared = False

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
        """Let schemes lay out their tensors for their device's kernels; `rows` is not possible from then on."""
        for each in self.weights:
            each.prepare()
        self.prepared = True

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] to [..., all rows]."""
        if len(self.parts) == 1:
            return self.parts[0](x, bias)
        out = torch.cat([part(x) for part in self.parts], dim=-1)
        return out if bias is None else out + bias

    def rows(self, start: int, stop: int) -> tuple[Scheme, Packed]:
        """Rows start to stop as they are packed; all of one part, as those of a projection are."""
        assert not self.prepared, "laid out for kernels; read the checkpoint again"
        for each in self.weights:
            if start < each.rows:
                return each.scheme, part(each.scheme, each.tensors, start, stop, "out")
            start, stop = start - each.rows, stop - each.rows
        raise IndexError(f"{start} is beyond the last row")

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All rows, [N, K]."""
        return torch.cat([part.unpack(dtype) for part in self.weights])


def joined(parts: Sequence[tuple[Scheme, Packed]]) -> list[tuple[Scheme, Packed]]:
    """Neighbours of one scheme joined where that changes nothing."""
    done: list[tuple[Scheme, Packed]] = []
    for scheme, packed in parts:
        if done and done[-1][0] == scheme and (both := join(scheme, [done[-1][1], packed])) is not None:
            done[-1] = scheme, both
        else:
            done.append((scheme, packed))
    return done
