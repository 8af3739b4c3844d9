"""When a tensor function runs as a Triton kernel, and what such launches share."""

import torch
from torch import Tensor

TENSOR_CORE_TYPES = (torch.bfloat16, torch.float16)


def on_gpu(*tensors: Tensor | None) -> bool:
    """Whether every tensor given lies on a CUDA device and none wants gradients (kernels record none)."""
    given = [t for t in tensors if t is not None]
    if not all(t.is_cuda for t in given):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def warps_for(elements: int, per_thread: int = 8) -> int:
    """Warps so that each thread holds about `per_thread` of a tile's elements: 1 to 16, a power of two."""
    return min(16, power_of_two(max(1, elements // (32 * per_thread))))


def rows_of(x: Tensor) -> Tensor:
    """x [..., N] as rows [R, N] with a unit last stride, copied only where strides allow no view."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    if x.is_contiguous():
        return x.view(-1, x.shape[-1])
    return x.contiguous().view(-1, x.shape[-1])


def parts_of(tiles: int, steps: int, least: int, multiprocessors: int) -> int:
    """Into how many a tile is cut whose launch overlaps others: half the processors are busy then, or parts have
    `least` steps. No further, as parts must be added up, and the next launch fetches where this one leaves room."""
    parts = 1
    while 2 * tiles * parts < multiprocessors and steps >= 2 * least * parts:
        parts *= 2
    return parts
