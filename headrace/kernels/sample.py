"""Draws one token per row of logits: greedy, or the Gumbel-max trick with random numbers that are a hash.

S rows that sample, V vocabulary. A row's randomness is a function of its seed, the
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

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.launch import on_gpu
from headrace.kernels.noise import below, gumbel, random_bits, row_keys

NEAR = 2.0**-23
"""A token this close to the likeliest counts as its equal."""

MASS = 2.0**33
"""What the likeliest token weighs; with up to 2**20 tokens a sum stays exact in float64 too."""

TILE = 1 << 15
"""Numbers a CPU works on at a time: a dozen operations in a row find them in its cache, and none is spread
over threads, whose meeting costs more than the work where other programs run."""

HASHED = 1 << 16
"""Ids whose random bits a CPU looks at at a time: as for TILE, but no library spreads this over threads."""

PIECE = 256
"""Numbers of which a CPU finds the largest at once."""

QUIET = 1 << 21
"""Of 2**31 patterns of random bits, the lowest so many make the largest noise: one token in 1024 has one of them."""

LOUD = math.log(2**31 / QUIET)
"""No other pattern makes noise above this."""

SLACK, ROUNDING = 0.01, 1e-6
"""A CPU looks so much farther, and this part of the number, than arithmetic without rounding would have to."""

FARS = (10.0, 16.0)
"""How far from the likeliest token a CPU looks for those that top_k and top_p allow, before it looks at all."""


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


_Way = Callable[[Tensor, Settings], Tensor]

ANYTHING = Draws(greedy=False, cuts=True, floors=True)
"""Right for every batch, if not the fastest for most."""


def draw(logits_SV: Tensor, settings: Settings | None, draws: Draws = ANYTHING) -> Tensor:
    """Token ids int64 [S]. logits float32; -inf is never drawn unless a row has nothing else.

    `settings` may be None where all draws are greedy.
    """
    if on_gpu(logits_SV):
        from headrace.kernels.gpu import sample as gpu  # needs triton, which only GPU builds of torch bring

        return gpu.draw(logits_SV, settings, draws)
    return _draw(logits_SV, settings, draws, (_greedy, _race, _rank))


def draw_ref(logits_SV: Tensor, settings: Settings | None, draws: Draws = ANYTHING) -> Tensor:
    """The definition of draw, which runs anywhere."""
    return _draw(logits_SV, settings, draws, (_greedy, _from_all, _from_sorted))


def _draw(
    logits_SV: Tensor, settings: Settings | None, draws: Draws, ways: tuple[_Way, _Way, _Way]
) -> Tensor:
    """`ways` for rows without temperature, for those that draw from all tokens, and for those with top_k or top_p."""
    if draws.greedy or settings is None:
        return _likeliest(logits_SV)
    drawn = settings.scale > 0
    ranked = drawn & ((settings.top_k > 0) | (settings.top_p < 1))
    tokens_S = torch.empty(len(logits_SV), dtype=torch.int64, device=logits_SV.device)
    for rows, way in zip((~drawn, drawn & ~ranked, ranked), ways, strict=True):
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
        ids = np.arange(start, start + tile.shape[1], dtype=np.uint32)
        score = gumbel(random_bits(ids, keys).to(z.device)).add_(z)
        if peak is not None:
            score.masked_fill_(_distance(peak, z) > reach, -torch.inf)
        most, at = score.max(-1)
        tokens = torch.where(most > best, at + start, tokens)
        best = torch.maximum(best, most)
    return tokens


def _from_sorted(logits_SV: Tensor, settings: Settings) -> Tensor:
    """Rows with top_k or top_p, sorted."""
    likely_SV, ids_SV = logits_SV.sort(-1, descending=True)
    z = likely_SV * settings.scale[:, None]
    d = _distance(z[:, :1], z)
    limit = settings.reach[:, None]
    k = torch.where(settings.top_k > 0, settings.top_k, len(z[0]) + 1)[:, None]
    cut = k <= (d <= limit).sum(-1, keepdim=True)
    limit = torch.where(cut, torch.minimum(limit, d.gather(-1, k.clamp(max=len(z[0])) - 1)), limit)
    limit = torch.where((settings.top_p < 1)[:, None], _nucleus(settings.top_p, d, limit), limit)
    bits = random_bits(ids_SV.cpu().numpy().astype(np.uint32), row_keys(settings.seeds, settings.positions))
    score = torch.where(d <= limit, gumbel(bits.to(z.device)).add_(z), -torch.inf)
    winner = score == score.amax(-1, keepdim=True)
    return torch.where(winner, ids_SV, len(z[0])).amin(-1)


def _nucleus(top_p: Tensor, d_SV: Tensor, limit: Tensor) -> Tensor:
    """[S, 1] the distance to which top_p reaches, of the tokens up to `limit` [S, 1]; d ascends."""
    reached = torch.where(d_SV <= limit, _mass(d_SV), 0).cumsum(-1)
    target = top_p[:, None].double() * reached[:, -1:]
    first = (reached < target).sum(-1, keepdim=True).clamp(max=d_SV.shape[1] - 1)
    return torch.minimum(d_SV.gather(-1, first), limit)


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


# -- on a CPU


def _race(logits_SV: Tensor, settings: Settings) -> Tensor:
    """As _from_all, but only tokens that can win get noise."""
    return _with_field(logits_SV, settings, _Field.race, _from_all)


def _rank(logits_SV: Tensor, settings: Settings) -> Tensor:
    """As _from_sorted, but only tokens near the likeliest are sorted."""
    return _with_field(logits_SV, settings, _Field.rank, _from_sorted)


def _with_field(
    logits_SV: Tensor, settings: Settings, way: Callable[["_Field"], np.ndarray], definition: _Way
) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):  # infinite products, and their differences
        tokens_S = torch.from_numpy(way(_Field(logits_SV, settings)))
    left = tokens_S < 0
    if left.any():
        tokens_S[left] = definition(logits_SV[left], settings.rows(left))
    return tokens_S


class _Field:
    """Rows with a temperature, as arrays. Where the likeliest z is not a finite number, their token is -1.

    Tokens are looked for with room for rounding: one too many takes time, and does not win.
    """

    def __init__(self, logits_SV: Tensor, settings: Settings):
        self.logits_SV = logits_SV.numpy()
        self.scale, self.reach, self.top_k, self.top_p = (column.numpy() for column in settings[:4])
        self.keys = tuple(key[:, 0] for key in row_keys(settings.seeds, settings.positions))
        self.likeliest = np.array([row.argmax() for row in self.logits_SV])
        self.peaks = self.logits_SV[np.arange(len(self.scale)), self.likeliest] * self.scale
        self.rows = np.flatnonzero(np.isfinite(self.peaks)).tolist()
        self._ids = np.arange(self.logits_SV.shape[1], dtype=np.uint32)
        self._hits = np.empty(self.logits_SV.shape[1], np.bool_)

    def race(self) -> np.ndarray:
        """Tokens [S] of rows without top_k and top_p.

        The winner scores at least as much as the best of the likeliest token and those with much noise. Others, whose
        noise is up to LOUD, reach that only if they are less than LOUD below it without any.
        """
        loud = {row: self._loud(row) for row in self.rows}
        least, _ = self._best(loud.items())
        low = np.maximum(least - LOUD, self.peaks - self.reach).tolist()
        found = ((row, np.concatenate((ids, self._near(row, low[row])))) for row, ids in loud.items())
        return self._best(found)[1]

    def rank(self) -> np.ndarray:
        """Tokens [S] of rows with top_k or top_p."""
        return self._best((row, self._allowed(row)) for row in self.rows)[1]

    def _best(self, found: Iterable[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """(score, token) [S] of the best of the ids found for each row; NaN and -1 for rows that are not named."""
        scores, tokens = np.full(len(self.scale), np.nan, np.float32), np.full(len(self.scale), -1)
        for rows, ids, counts in _batches(found):
            at, starts = np.repeat(rows, counts), np.cumsum(counts) - counts
            z = self.logits_SV[at, ids] * self.scale[at]
            keys = self.keys[0][at], self.keys[1][at]
            score = gumbel(random_bits(ids.astype(np.uint32), keys)).numpy()
            score += z
            score[_gap(self.peaks[at], z) > self.reach[at]] = -np.inf
            scores[rows] = np.maximum.reduceat(score, starts)
            ids[score < scores[at]] = self.logits_SV.shape[1]
            tokens[rows] = np.minimum.reduceat(ids, starts)
        return scores, tokens

    def _near(self, row: int, low: float) -> np.ndarray:
        """Ids of all tokens of z >= low, and of few others."""
        low = (low - abs(low) * ROUNDING - SLACK) / float(self.scale[row])
        np.greater_equal(self.logits_SV[row], np.float32(low), out=self._hits)
        return np.flatnonzero(self._hits)

    def _loud(self, row: int) -> np.ndarray:
        """Ids of random bits below QUIET, and the likeliest."""
        keys = tuple(key[row] for key in self.keys)
        found = [self.likeliest[row : row + 1]]
        for start in range(0, len(self._ids), HASHED):
            found.append(np.flatnonzero(below(QUIET, self._ids[start : start + HASHED], keys)) + start)
        return np.concatenate(found)

    def _allowed(self, row: int) -> np.ndarray:
        """Ids of all tokens that the row may draw."""
        peak = self.peaks[row]
        total = self._total(row) if self.top_k[row] <= 0 and self.reach[row] == np.inf else None
        for far in (*FARS, math.inf):
            ids = self._near(row, float(peak) - far)
            d = _gap(peak, self.logits_SV[row].take(ids) * self.scale[row])
            limit = self._limit(row, np.sort(d[d <= far]), far, total)
            if limit is not None:
                return ids[d <= limit]
        raise AssertionError("nothing is farther than infinity")

    def _limit(self, row: int, d: np.ndarray, far: float, total: float | None) -> float | None:
        """Up to which distance the row may draw; None if that is not known from `d`, all that are up to `far`."""
        k, limit = int(self.top_k[row]), float(self.reach[row])
        d = d[: np.searchsorted(d, limit, "right")]
        if 0 < k <= len(d):
            limit = float(d[k - 1])
        elif limit > far and total is None:
            return None
        if self.top_p[row] >= 1:
            return limit
        d = d[: np.searchsorted(d, limit, "right")]
        reached = _mass(torch.from_numpy(d)).cumsum(0).numpy()
        target = float(self.top_p[row]) * (float(reached[-1]) if total is None else total)
        first = int(np.searchsorted(reached, target))
        if first == len(d) and limit > far:
            return None
        return min(limit, float(d[min(first, len(d) - 1)]))

    def _total(self, row: int) -> float:
        """The mass of all tokens."""
        total = 0.0
        for _, tile in _tiles(torch.from_numpy(self.logits_SV[row : row + 1])):
            z = tile * float(self.scale[row])
            d = torch.threshold_(z.neg_().add_(float(self.peaks[row])), NEAR * (1 - 2**-24), 0.0)
            total += float(d.neg_().exp_().mul_(MASS).floor_().sum(dtype=torch.float64))
        return total


def _batches(
    found: Iterable[tuple[int, np.ndarray]],
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """(rows, their ids one after the other, how many of each), below TILE ids where several rows share a batch."""
    rows: list[int] = []
    lists: list[np.ndarray] = []
    size = 0
    for row, ids in found:
        if rows and size + len(ids) >= TILE:
            yield rows, np.concatenate(lists), np.array([len(ids) for ids in lists])
            rows, lists, size = [], [], 0
        rows.append(row)
        lists.append(ids)
        size += len(ids)
    if rows:
        yield rows, np.concatenate(lists), np.array([len(ids) for ids in lists])


def _gap(peak: np.ndarray, z: np.ndarray) -> np.ndarray:
    """_distance of arrays."""
    d = peak - z
    d[d < NEAR] = 0
    return d
