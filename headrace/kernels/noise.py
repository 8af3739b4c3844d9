"""Gumbel noise that is a hash of a seed, a position and a token's id: no state, the same on every device."""

import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**-31 * (1 - 2.0**-24)
"""Turns 31 random bits into a number below 1 even after rounding to float32."""

MIX_A, MIX_B = 0x21F0AAAD, 0xD35A2D97
"""Odd multipliers of a 32-bit integer hash of low bias (C. Wellons, hash prospector, public domain)."""

SEED_A, SEED_B = 0x9E3779B9, 0x7FEB352D
"""Start the two row keys off from different places."""


def mix(x: np.ndarray) -> np.ndarray:
    """A permutation of uint32 in which every input bit moves every output bit."""
    x = x ^ (x >> 16)
    x *= MIX_A
    x ^= x >> 15
    x *= MIX_B
    x ^= x >> 15
    return x


def row_keys(seeds_S: Tensor, positions_S: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Two keys, uint32 [S, 1], per row that stand for its seed and position."""
    seeds, position = seeds_S.cpu().numpy(), positions_S.cpu().numpy().astype(np.uint32)
    low, high = seeds.astype(np.uint32), (seeds >> 32).astype(np.uint32)
    x = mix(np.stack((low + SEED_A, high + SEED_B))) ^ np.stack((high, low))
    first, second = mix(x)
    first, second = mix(np.stack((first + position, second ^ position)))
    return first[:, None], second[:, None]


def _scramble(ids: np.ndarray, keys: tuple[np.ndarray, ...]) -> np.ndarray:
    """All of the hash but its last step, which leaves the upper 15 bits as they are."""
    x = ids + keys[0]
    x ^= x >> 16
    x *= MIX_A
    x ^= keys[1]
    x ^= x >> 15
    x *= MIX_B
    return x


def random_bits(ids: np.ndarray, keys: tuple[np.ndarray, ...]) -> Tensor:
    """31 random bits, int32 [S, n], for token ids uint32 [n] or [S, n]: the hash of id, seed and position."""
    x = _scramble(ids, keys)
    x ^= x >> 15
    x &= 0x7FFFFFFF
    return torch.from_numpy(x.view(np.int32))


def below(limit: int, ids: np.ndarray, keys: tuple[np.ndarray, ...]) -> np.ndarray:
    """random_bits(ids, keys) < limit, a power of two that is 2**17 or more."""
    return (_scramble(ids, keys) << 1) < 2 * limit


def gumbel(bits: Tensor) -> Tensor:
    """Gumbel noise float32: -log of a standard exponential, finest where it is largest, -2.9 to 22."""
    exponential = bits.float().add_(0.5).mul_(-UNIT).log1p_().neg_()
    return exponential.log_().neg_()
