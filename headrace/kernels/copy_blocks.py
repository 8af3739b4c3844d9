"""Copy of whole KV blocks inside a cache, by pairs of block numbers."""

from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.launch import on_gpu


def copy_blocks_ref(cache: Tensor, pairs_N2: Tensor) -> None:
    """The definition of copy_blocks."""
    cache.index_copy_(0, pairs_N2[:, 1], cache.index_select(0, pairs_N2[:, 0]))


def copy_blocks(cache: Tensor, pairs_N2: Tensor) -> None:
    """cache[target] = cache[source] for each (source, target) row of int64 pairs [N, 2]; cache [blocks, ...].

    Targets are distinct and none of them is also a source; block numbers are not checked.
    """
    if cache.is_contiguous() and on_gpu(cache, pairs_N2):
        from headrace.kernels.gpu import copy_blocks as gpu

        gpu.copy_blocks(cache, pairs_N2, configs.pdl(cache.device))
    else:
        copy_blocks_ref(cache, pairs_N2)
