"""The reference back end: paged attention in plain torch, on any device.

Rows with one query (decoding) are gathered together, a cache-sized bunch of similar lengths at a time; rows
with more queries (prefill) go one by one through scaled_dot_product_attention. Dimensions as in backend.py;
S keys of a row.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from headrace.attention.backend import BatchView, Layer, pages_of, scores_of
from headrace.kernels.paged import cells_of, movable
from headrace.kernels.paged_fixed import paged_fixed

# Elements of K gathered per bunch of decoding rows. On a CPU what was gathered should still be in the
# second-level cache when it is multiplied; on a GPU launches cost more than memory traffic.
BUNCH_CPU = 1 << 19
BUNCH_GPU = 1 << 26
# Scores held at once where they are made explicitly (softcap).
SCORES = 1 << 24


def fits(device: torch.device, head_dim: int) -> str | None:
    """None: this back end runs anywhere."""
    return None


def records(dtype: torch.dtype, block_size: int, group: int) -> bool:
    """No: its indices are made on the host at every step."""
    return False


def causal_bias(
    queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[queries, keys]: 0 where query i, at position keys - queries + i, sees key j; -inf elsewhere."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def dense(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    bias_TS: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Attention of one sequence over contiguous keys: [T, H, D] in q's dtype.

    `bias_TS` is added to the scores; None means causal with T = S. With a softcap c the scaled scores become
    c * tanh(scores / c) first (Gemma 2 report, section 2).
    """
    tokens, heads, head_dim = q_THD.shape
    keys, kv_heads = k_SKD.shape[:2]
    # Query heads that share a kv head become its batch row; K and V are expanded by stride, not copied.
    q = q_THD.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
    k = k_SKD.transpose(0, 1).unsqueeze(1).expand(-1, heads // kv_heads, -1, -1)
    v = v_SKD.transpose(0, 1).unsqueeze(1).expand(-1, heads // kv_heads, -1, -1)
    if softcap is None:
        # On CUDA in float32 torch 2.11's fused kernel with a mask gives wrong sums for some lengths (65 keys, 129).
        with sdpa_kernel(SDPBackend.MATH) if q.is_cuda and q.dtype == torch.float32 else nullcontext():
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias_TS, is_causal=bias_TS is None, scale=scale
            )
    else:
        if bias_TS is None:
            bias_TS = causal_bias(tokens, keys, None, q.dtype, q.device)
        part = max(1, SCORES // (heads * keys))
        out = torch.cat(
            [
                _softcapped(a, k, v, b, scale, softcap)
                for a, b in zip(q.split(part, dim=2), bias_TS.split(part), strict=True)
            ],
            dim=2,
        )
    return out.permute(2, 0, 1, 3).reshape(tokens, heads, head_dim)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, softcap: float) -> Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(scale / softcap).tanh_().mul_(softcap)
    return torch.matmul(torch.softmax(scores.add_(bias), dim=-1).to(q.dtype), v)


@dataclass(frozen=True, slots=True)
class Bunch:
    """Decoding rows that are computed together, padded to the longest of them."""

    queries: Tensor  # where their queries are among the step's tokens
    cells: Tensor  # [R * K * S] rows of the cache seen as [blocks * block_size * K, D]
    bias: Tensor  # [R * K, 1, S] float32
    run: tuple[int, int] | None = None  # slots from, to, of a single row whose keys lie one behind the other


@dataclass(frozen=True, slots=True)
class Stretch:
    """One row with several queries."""

    start: int
    stop: int
    slots: Tensor  # of the keys that any of its queries sees
    bias: Tensor | None  # [queries, keys]; None: plain causal


class Backend:
    """See backend.Backend. Keeps what a step's layers share, and two buffers for gathered keys and values.

    With `fixed` a query's result is the same bits in any chunk and any company, at several times the cost.
    """

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed
        self._plans: dict[tuple[int, int | None, int, int, bool], tuple[list[Bunch], list[Stretch]]] = {}
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def plan(self, batch: BatchView) -> None:
        """Forget the step before; indices are made by the first layer of each kind that runs."""
        self._plans.clear()

    def run_new(
        self,
        layer: Layer,
        qkv: tuple[Tensor, Tensor, Tensor],
        batch: BatchView,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor | None:
        """None: see backend.Backend."""
        return None

    def run(self, layer: Layer, q_THD: Tensor, batch: BatchView, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """Attention of one layer: [T, H, D], in q's dtype; zero for padding after the last row."""
        if self.fixed:
            return paged_fixed(q_THD, pages_of(layer, batch, k_cache, v_cache), scores_of(layer))
        key = (layer.group, layer.window, layer.kv_heads, layer.head_dim, batch.single)
        if key not in self._plans:
            size = k_cache.shape[1]
            self._plans[key] = (
                list(_bunches(layer, batch, size)),
                list(_stretches(layer, batch, size, q_THD.dtype)),
            )
        bunches, stretches = self._plans[key]
        if len(bunches) == 1 and not stretches and len(q_THD) == 1:
            out = self._decode(layer, q_THD, bunches[0], k_cache, v_cache)
            return out if layer.v_scale == 1.0 else out.mul_(layer.v_scale)
        out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        out[int(batch.starts_np[batch.rows]) :].zero_()
        for bunch in bunches:
            out[bunch.queries] = self._decode(layer, q_THD[bunch.queries], bunch, k_cache, v_cache)
        for row in stretches:
            k, v = (cells_of(cache, row.slots).to(q_THD.dtype) for cache in (k_cache, v_cache))
            q = q_THD[row.start : row.stop]
            out[row.start : row.stop] = dense(q, k, v, row.bias, layer.scale * layer.k_scale, layer.softcap)
        return out if layer.v_scale == 1.0 else out.mul_(layer.v_scale)

    def _decode(self, layer: Layer, q_RHD: Tensor, bunch: Bunch, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """One query per row; scores, softmax and sum in float32."""
        pairs, _, keys = bunch.bias.shape
        if bunch.run is not None and k_cache.dtype == torch.float32:
            k, v = (cache.flatten(0, 1)[slice(*bunch.run)].transpose(0, 1) for cache in (k_cache, v_cache))
        else:
            k = self._gather("k", k_cache, bunch.cells).view(pairs, keys, layer.head_dim)
            v = self._gather("v", v_cache, bunch.cells).view(pairs, keys, layer.head_dim)
        q = (q_RHD.float() * (layer.scale * layer.k_scale)).view(pairs, -1, layer.head_dim)
        if layer.softcap is None:
            scores = torch.baddbmm(bunch.bias, q, k.transpose(1, 2))
        else:
            scores = torch.bmm(q, k.transpose(1, 2)).div_(layer.softcap).tanh_().mul_(layer.softcap)
            scores.add_(bunch.bias)
        out = torch.bmm(torch.softmax(scores, dim=-1), v)
        return out.view(q_RHD.shape).to(q_RHD.dtype)

    def _gather(self, name: str, cache: Tensor, cells: Tensor) -> Tensor:
        """Rows `cells` of the cache, float32, valid until the next call for `name`.

        Into a kept buffer: fresh memory of this size costs more in page faults than the copy itself.
        """
        width, source = cache.shape[-1], movable(cache)
        key = (name, source.dtype, cache.device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < cells.numel() * width:
            with torch.inference_mode(False):  # else it could not be written outside of inference mode later
                buffer = torch.empty(cells.numel() * width, dtype=source.dtype, device=cache.device)
            self._buffers[key] = buffer
        into = buffer[: cells.numel() * width].view(-1, width)
        return torch.index_select(source.view(-1, width), 0, cells, out=into).view(cache.dtype).float()


def _bunches(layer: Layer, batch: BatchView, block_size: int) -> Iterator[Bunch]:
    """Decoding rows, longest first, so that those padded to one length are alike."""
    device = batch.context.device
    counts = np.diff(batch.starts_np[: batch.rows + 1])
    rows = np.flatnonzero(counts == 1)
    stops = np.maximum(batch.context_np[rows].astype(np.int64), 1)  # a padded row may have no context
    firsts = np.zeros_like(stops) if layer.window is None else np.maximum(stops - layer.window, 0)
    order = np.argsort(firsts - stops, kind="stable")
    rows, stops, firsts = rows[order], stops[order], firsts[order]
    room = BUNCH_CPU if device.type == "cpu" else BUNCH_GPU
    done = 0
    while done < len(rows):
        keys = int(stops[done] - firsts[done])
        some = slice(done, done + max(1, room // (keys * layer.kv_heads * layer.head_dim)))
        done = some.stop
        yield _bunch(layer, batch, block_size, rows[some], firsts[some], stops[some])


def _bunch(
    layer: Layer, batch: BatchView, block_size: int, rows: np.ndarray, firsts: np.ndarray, stops: np.ndarray
) -> Bunch:
    device = batch.context.device
    positions = firsts[:, None] + np.arange(int((stops - firsts).max()))
    padded = positions >= stops[:, None]
    # Padding reads the row's own newest key: what lies in cells that are not the row's enters no product.
    positions = np.where(padded, stops[:, None] - 1, positions)
    slots_RS = _slots(batch.tables[layer.group][torch.from_numpy(rows).to(device)], positions, block_size)
    heads_K = torch.arange(layer.kv_heads, device=device)
    bias = torch.zeros(padded.shape, device=device)
    bias.masked_fill_(torch.from_numpy(padded).to(device), float("-inf"))
    return Bunch(
        queries=torch.from_numpy(batch.starts_np[rows].astype(np.int64)).to(device),
        cells=(slots_RS[:, None, :] * layer.kv_heads + heads_K[:, None]).flatten(),
        bias=bias.repeat_interleave(layer.kv_heads, dim=0).unsqueeze(1),
        run=_run(slots_RS),
    )


def _run(slots_RS: Tensor) -> tuple[int, int] | None:
    """(first, behind the last) of a single row's slots on a CPU where they follow each other: no need to gather."""
    if slots_RS.is_cuda or len(slots_RS) > 1 or not bool((slots_RS.diff() == 1).all()):
        return None
    return int(slots_RS[0, 0]), int(slots_RS[0, -1]) + 1


def _stretches(layer: Layer, batch: BatchView, block_size: int, dtype: torch.dtype) -> Iterator[Stretch]:
    """Rows with several queries, each with the keys that its first query's window begins with."""
    starts, device = batch.starts_np, batch.context.device
    for row in np.flatnonzero(np.diff(starts[: batch.rows + 1]) > 1).tolist():
        start, stop, context = int(starts[row]), int(starts[row + 1]), int(batch.context_np[row])
        queries = stop - start
        first = 0 if layer.window is None else max(0, context - queries - layer.window + 1)
        keys = context - first
        binding = layer.window is not None and keys > layer.window
        slots_1S = _slots(
            batch.tables[layer.group][row : row + 1], np.arange(first, context)[None], block_size
        )
        plain = queries == keys and not binding
        bias = None if plain else causal_bias(queries, keys, layer.window, dtype, device)
        yield Stretch(start, stop, slots_1S[0], bias)


def _slots(table_RB: Tensor, positions_RS: np.ndarray, block_size: int) -> Tensor:
    """Where each row's positions are in the cache: [R, S] int64."""
    blocks = torch.from_numpy(positions_RS // block_size).to(table_RB.device)
    offsets = torch.from_numpy(positions_RS % block_size).to(table_RB.device)
    return table_RB.long().gather(1, blocks) * block_size + offsets
