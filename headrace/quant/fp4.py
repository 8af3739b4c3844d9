"""4-bit floats (e2m1): a sign bit above three bits that number 0, 0.5, 1, 1.5, 2, 3, 4, 6; two to a byte."""

import torch
from torch import Tensor

# Between neighbours; a number on the line goes to the one with an even code.
EDGES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
LARGEST = 6.0


def codes(x: Tensor) -> Tensor:
    """The nearest code of each number, uint8 below 16; beyond 6 it is 6."""
    size = x.abs().float()
    edges = torch.tensor(EDGES, device=x.device)
    # A line with an odd code above it belongs to the code below, and is not crossed by reaching it.
    code = torch.bucketize(size, edges)
    code += torch.isin(size, edges[1::2]).to(code.dtype)
    return (code + 8 * (x < 0)).to(torch.uint8)


def pack_fp4(x: Tensor) -> Tensor:
    """[..., K] to uint8 [..., K / 2], even columns in low nibbles."""
    pairs = codes(x).unflatten(-1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Back to float32 [..., K]."""
    # The 16 values are made where they are needed: a CUDA graph may not bring them from the host.
    code = torch.arange(16, device=packed.device)
    size = code & 7
    quarters = torch.where(size < 2, 2 * size, (2 + (size & 1)) << (size >> 1))
    table = torch.where(code < 8, quarters, -quarters).float() / 4
    return table[torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).int()]
