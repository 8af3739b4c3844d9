"""The KV tensors. Who uses which block is the scheduler's business."""

import math
import mmap

import torch
from torch import Tensor

from headrace.engine.layout import Layout


class KVCache:
    """k and v: per place in a layer group, [blocks + 1, block_size, kv_heads, head_dim]; block 0 is void.

    On a CPU the memory is mapped by the system when first written, so a large cache costs nothing unused.
    """

    def __init__(
        self,
        layout: Layout,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (blocks + 1, block_size, kv_heads, head_dim)
        self.layout = layout
        self.k: list[Tensor] = [untouched(shape, dtype, device) for _ in range(layout.depth)]
        self.v: list[Tensor] = [untouched(shape, dtype, device) for _ in range(layout.depth)]


def untouched(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU of memory that is not touched yet, which torch.zeros would do.

    In small pages: a few tokens touch pages of every layer, and NumPy asks for pages of 2 MB, some of which take 4 ms.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(raw, dtype=dtype).view(shape)


def bytes_per_block(layout: Layout, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Memory that one block takes over all layers of its group, in bytes."""
    return 2 * layout.depth * block_size * kv_heads * head_dim * dtype.itemsize
