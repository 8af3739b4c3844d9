"""Draws one token per row of logits: greedy, or the Gumbel-max trick with random numbers that are a hash.

S rows that sample, V vocabulary, K candidates of a row. A row's randomness is a function of its seed, the
position of the new token and each token's id alone: a seeded row draws the same token whatever shares its batch.

What a row may draw, in this order, z = logit / temperature and d = max(z) - z:
  min_p    tokens with d <= -log(min_p)
  top_k    of these, tokens with d <= the k-th smallest d
  top_p    of these, tokens that are preceded by less than top_p of their probability mass
Tokens of equal d stand or fall together, and a d below 2**-23 counts as 0. Masses are sums of integers (units
of 2**-33 of the likeliest token's), so that they do not depend on the order of addition: every version of this
function finds the same sets. Then the token of largest z + Gumbel noise wins, the lowest id among equals. That
is a draw from softmax over the set (Gumbel 1954; Maddison, Tarlow & Minka 2014, section 2).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.launch import on_gpu

NEAR = 2.0**-23
"""A token this close to the likeliest counts as its equal."""

MASS = 2.0**33
"""What the likeliest token weighs; with up to 2**20 tokens a sum stays exact in float64 too."""

UNIT = 2.0**-31 * (1 - 2.0**-24)
"""Turns 31 random bits into a number below 1 even after rounding to float32."""

MIX_A, MIX_B = 0x21F0AAAD, 0xD35A2D97 - 2**32
"""Odd multipliers of a 32-bit integer hash of low bias (C. Wellons, hash prospector, public domain)."""

SEED_A, SEED_B = 0x9E3779B9 - 2**32, 0x7FEB352D
"""Start the two row keys off from different places."""

TILE = 1 << 15
"""Numbers a CPU works on at a time: a dozen operations in a row find them in its cache, and none is spread
over threads, whose meeting costs more than the work where other programs run."""

PIECE = 256
"""Numbers of which a CPU finds the largest at once."""

CANDIDATES = (256, 4096)
"""How many likeliest tokens top_p looks among, first and then; rows that need more are sorted in full."""


class Settings(NamedTuple):
    """How each row draws, tensors of [S] on the logits' device.

    scale      float32  1 / temperature, 0 for greedy rows      reach      float32  -log(min_p), inf: off
    top_k      int64    0 or less: off                          top_p      float32  1: off
    seeds      int64                                            positions  int64    of the token to be drawn
    """

    scale: Tensor
    reach: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
    positions: Tensor

    def rows(self, index: Tensor) -> "Settings":
        """Only these rows; `index` is a mask or row numbers."""
        return Settings(*(column[index] for column in self))


class Knobs(NamedTuple):
    """What slots or rows ask for, in two tables: float32 scale, reach, top_p; int64 top_k, seed."""

    floats_PN: Tensor
    ints_PN: Tensor

    def settings(self, positions_S: Tensor) -> Settings:
        """Of as many rows as there are positions, the first ones."""
        scale, reach, top_p, top_k, seeds = (row[: len(positions_S)] for table in self for row in table)
        return Settings(scale, reach, top_k, top_p, seeds, positions_S)


class Draws(NamedTuple):
    """What the host knows of a batch's draws before it launches kernels; these are chosen by it, never by device data.

    greedy  every row takes its likeliest token     cuts    some row has top_k or top_p
    floors  some row has min_p
    """

    greedy: bool
    cuts: bool
    floors: bool

    @classmethod
    def of(cls, scale: np.ndarray, reach: np.ndarray, top_k: np.ndarray, top_p: np.ndarray) -> "Draws":
        """Of rows whose settings are these host arrays of [S]."""
        drawn = scale > 0
        cuts = ((top_k > 0) | (top_p < 1)) & drawn
        return cls(not drawn.any(), bool(cuts.any()), bool(((reach < np.inf) & drawn).any()))


ANYTHING = Draws(greedy=False, cuts=True, floors=True)
"""Right for every batch, if not the fastest for most."""


def draw(logits_SV: Tensor, settings: Settings | None, draws: Draws = ANYTHING) -> Tensor:
    """Token ids int64 [S]. logits float32; -inf is never drawn unless a row has nothing else.

    `settings` may be None where all draws are greedy.
    """
    if on_gpu(logits_SV):
        from headrace.kernels.gpu import sample as gpu  # needs triton, which only GPU builds of torch bring

        return gpu.draw(logits_SV, settings, draws)
    return draw_ref(logits_SV, settings, draws)


def draw_ref(logits_SV: Tensor, settings: Settings | None, draws: Draws = ANYTHING) -> Tensor:
    """The definition of draw, which runs anywhere."""
    if draws.greedy or settings is None:
        return _likeliest(logits_SV)
    drawn = settings.scale > 0
    ranked = drawn & ((settings.top_k > 0) | (settings.top_p < 1))
    tokens_S = torch.empty(len(logits_SV), dtype=torch.int64, device=logits_SV.device)
    for rows, way in ((~drawn, _greedy), (drawn & ~ranked, _from_all), (ranked, _from_likeliest)):
        if rows.all():
            return way(logits_SV, settings)
        if rows.any():
            tokens_S[rows] = way(logits_SV[rows], settings.rows(rows))
    return tokens_S


def _greedy(logits_SV: Tensor, settings: Settings) -> Tensor:
    return _likeliest(logits_SV)


def _likeliest(logits_SV: Tensor) -> Tensor:
    """argmax of each row, first among pieces: torch compares numbers one by one there, and side by side in amax."""
    if logits_SV.shape[1] % PIECE:
        return logits_SV.argmax(-1)
    pieces = logits_SV.unflatten(-1, (-1, PIECE))
    best = pieces.amax(-1).argmax(-1, keepdim=True)
    found = pieces.gather(1, best.unsqueeze(-1).expand(-1, -1, PIECE)).squeeze(1).argmax(-1)
    return found.add_(best.squeeze(1), alpha=PIECE)


def _from_all(logits_SV: Tensor, settings: Settings) -> Tensor:
    """Rows without top_k and top_p: one pass, nothing sorted."""
    keys = row_keys(settings.seeds, settings.positions)
    scale, reach = settings.scale[:, None], settings.reach[:, None]
    peak = logits_SV.amax(-1, keepdim=True) * scale if (settings.reach < torch.inf).any() else None
    best, tokens = torch.full_like(settings.scale, -torch.inf), torch.zeros_like(settings.seeds)
    for start, tile in _tiles(logits_SV):
        z = tile * scale
        ids = torch.arange(start, start + tile.shape[1], dtype=torch.int32, device=tile.device)
        score = gumbel(ids, keys).add_(z)
        if peak is not None:
            score.masked_fill_(_distance(peak, z) > reach, -torch.inf)
        most, at = score.max(-1)
        tokens = torch.where(most > best, at + start, tokens)
        best = torch.maximum(best, most)
    return tokens


def _from_likeliest(logits_SV: Tensor, settings: Settings) -> Tensor:
    """Rows with top_k or top_p: from a few candidates where these are enough, else from the sorted row."""
    tokens = torch.zeros_like(settings.seeds)
    left = torch.arange(len(tokens), device=tokens.device)
    for count in _counts(settings.top_k, logits_SV.shape[1]):
        found, enough = _from_candidates(logits_SV[left], settings.rows(left), count)
        tokens[left] = found
        left = left[~enough]
        if not len(left):
            break
    return tokens


def _counts(top_k: Tensor, vocab: int) -> list[int]:
    """How many candidates to try, ever more; a few above top_k show whether equals of the last one follow."""
    least = int(top_k.max()) + 8
    counts = {max(n, least) for n in CANDIDATES} if (top_k <= 0).any() else {least}
    return [*sorted(n for n in counts if n < vocab // 4), vocab]


def _from_candidates(logits_SV: Tensor, settings: Settings, count: int) -> tuple[Tensor, Tensor]:
    """(tokens [S], whether the row's `count` likeliest tokens hold all that it may draw [S])."""
    vocab = logits_SV.shape[1]
    if count == vocab:
        likely_SK, ids_SK = logits_SV.sort(-1, descending=True)
    else:
        likely_SK, ids_SK = logits_SV.topk(count, -1)
    z = likely_SK * settings.scale[:, None]
    d = _distance(z[:, :1], z)
    limit = settings.reach[:, None]
    k = torch.where(settings.top_k > 0, settings.top_k, vocab).clamp(max=count)[:, None]
    cut = (settings.top_k > 0)[:, None] & (k <= (d <= limit).sum(-1, keepdim=True))
    limit = torch.where(cut, torch.minimum(limit, d.gather(-1, k - 1)), limit)
    limit = torch.where((settings.top_p < 1)[:, None], _nucleus(logits_SV, settings, d, limit), limit)
    keep = d <= limit
    score = torch.where(
        keep, gumbel(ids_SK.int(), row_keys(settings.seeds, settings.positions)) + z, -torch.inf
    )
    winner = score == score.amax(-1, keepdim=True)
    return torch.where(winner, ids_SK, vocab).amin(-1), ~keep[:, -1] | (count == vocab)


def _nucleus(logits_SV: Tensor, settings: Settings, d_SK: Tensor, limit: Tensor) -> Tensor:
    """[S, 1] the distance to which top_p reaches, of the tokens up to `limit` [S, 1]; candidates d ascend."""
    total = torch.where(d_SK <= limit, _mass(d_SK), 0).sum(-1, keepdim=True)
    if d_SK.shape[1] < logits_SV.shape[1]:
        beyond = (settings.top_p < 1) & (
            settings.top_k <= 0
        )  # others end among the candidates, or are sorted
        total[beyond] = _total(logits_SV[beyond], settings.rows(beyond), limit[beyond])
    reached = torch.where(d_SK <= limit, _mass(d_SK), 0).cumsum(-1)
    target = settings.top_p[:, None].double() * total
    first = (reached < target).sum(-1, keepdim=True).clamp(max=d_SK.shape[1] - 1)
    return torch.minimum(d_SK.gather(-1, first), limit)


def _total(logits_SV: Tensor, settings: Settings, limit: Tensor) -> Tensor:
    """[S, 1] the mass of all tokens up to `limit`."""
    scale = settings.scale[:, None]
    peak = logits_SV.amax(-1, keepdim=True) * scale
    total = torch.zeros_like(peak, dtype=torch.int64)
    for _, tile in _tiles(logits_SV):
        d = _distance(peak, tile * scale)
        total += torch.where(d <= limit, _mass(d), 0).sum(-1, keepdim=True)
    return total


def _tiles(logits_SV: Tensor) -> list[tuple[int, Tensor]]:
    """(first id, logits of some ids for all rows), about TILE numbers each."""
    width = max(256, (TILE - 1) // max(1, len(logits_SV)))
    return [(a, logits_SV[:, a : a + width]) for a in range(0, logits_SV.shape[1], width)]


def _distance(peak: Tensor, z: Tensor) -> Tensor:
    d = peak - z
    return torch.where(d < NEAR, 0.0, d)


def _mass(d: Tensor) -> Tensor:
    """int64 mass of a token at distance d from the likeliest."""
    return torch.exp(-d).mul_(MASS).long()


# -- randomness


def _mix(x: Tensor) -> Tensor:
    """A permutation of 32-bit integers in which every input bit moves every output bit. int32, wrapping."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * MIX_A
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * MIX_B
    return x ^ ((x >> 15) & 0x1FFFF)


def row_keys(seeds_S: Tensor, positions_S: Tensor) -> tuple[Tensor, Tensor]:
    """Two int32 keys [S, 1] per row that stand for its seed and position."""
    low, high, position = seeds_S.int(), (seeds_S >> 32).int(), positions_S.int()
    first = _mix(_mix(_mix(low + SEED_A) ^ high) + position)
    second = _mix(_mix(_mix(high + SEED_B) ^ low) ^ position)
    return first[:, None], second[:, None]


def random_bits(ids: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    """31 random bits, int32 [S, n], for token ids int32 [n] or [S, n]: the hash of id, seed and position."""
    x = ids + keys[0]
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= MIX_A
    x ^= keys[1]
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= MIX_B
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    return x.bitwise_and_(0x7FFFFFFF)


def gumbel(ids: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    """Gumbel noise float32 [S, n]: -log of a standard exponential, finest where it is largest, -2.9 to 22."""
    exponential = random_bits(ids, keys).float().add_(0.5).mul_(-UNIT).log1p_().neg_()
    return exponential.log_().neg_()
