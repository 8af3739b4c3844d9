"""The back end for GPUs: our Triton kernels over the paged cache, one for decoding rows, one for prompt rows.

A step without prompt rows is one launch per layer whose grid depends on the chip alone, and nothing is made on
the host: it can be captured in a CUDA graph and replayed with other lengths. A mixed step is two launches; the
list of work of the second is made on the host, for a graph in a place that stays.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.attention import torch as plain
from headrace.attention.backend import BatchView, Layer, pages_of, scores_of
from headrace.kernels import configs, rules
from headrace.kernels.choices import PagedPrefill
from headrace.kernels.launch import TENSOR_CORE_TYPES
from headrace.kernels.paged import prefill_work

Launch = Callable[..., None]

MOST_GROUP = 32
"""Query heads per kv head that one program of these kernels holds."""
PROMPTS = 64
"""Prompt rows that a recorded step has room for."""


def fits(device: torch.device, head_dim: int) -> str | None:
    """Why these kernels cannot serve a model on this device, or None."""
    if device.type != "cuda":
        return "triton needs a CUDA device"
    if find_spec("triton") is None:
        return "triton is not installed"
    if configs.capability(device) < (8, 0):
        return "triton needs compute capability 8.0 or newer"
    if head_dim > 256 or head_dim % 8:
        return f"triton serves head sizes up to 256 in multiples of 8, not {head_dim}"
    return None


def records(dtype: torch.dtype, block_size: int, group: int) -> bool:
    """See backend. Not 32-bit models, blocks of other than a multiple of 16 keys, or more than MOST_GROUP query
    heads per kv head: what these kernels do not take, the reference does."""
    return dtype in TENSOR_CORE_TYPES and block_size % 16 == 0 and group <= MOST_GROUP


class Backend:
    """See backend.Backend. What cannot be recorded (`records`) is left to the reference.

    With `fixed` a query's result is the same bits in any chunk and any company (kernels/gpu/paged_fixed.py).
    Run the largest step once before capturing graphs: the workspace grows by then and not later.
    """

    def __init__(self, fixed: bool = False) -> None:
        from headrace.kernels.gpu import paged_decode, paged_few, paged_fixed, paged_prefill

        self.fixed = fixed
        self._plain = plain.Backend(fixed)
        self._decode: Launch = paged_fixed.decode if fixed else paged_decode.decode
        self._prefill: Launch = paged_fixed.prefill if fixed else paged_prefill.prefill
        self._attend_new, self._new = paged_few.attend_new, paged_few.New
        self._new_workspace = paged_decode.Workspace
        self._workspaces: dict[torch.device, Any] = {}
        self._work: dict[int, Tensor] = {}
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._sizes: set[int] = set()
        self._decodes = self._prefills = self._recorded = False
        self._means = configs.MANY, configs.MANY

    def plan(self, batch: BatchView) -> None:
        """Which kernels the step needs; the list of prompt work is made when the first layer asks for it."""
        self._recorded = False
        self._plan(batch)

    def plan_recorded(self, batch: BatchView) -> tuple[PagedPrefill, ...] | None:
        """See backend. Lists of work that a layer has asked for once are filled anew, where recordings find them."""
        queries = self._plan(batch)
        if self.fixed or (queries > 1).sum() > PROMPTS:
            return None
        self._recorded = self._prefills = self._decodes = True
        for (tokens, span), kept in self._kept.items():
            if tokens == batch.tokens:
                _refill(kept, batch, span)
        cap = configs.capability(batch.starts.device)
        return tuple(configs.paged_prefill(cap, size, *self._means) for size in sorted(self._sizes))

    def _plan(self, batch: BatchView) -> np.ndarray:
        queries = np.diff(batch.starts_np[: batch.rows + 1])
        self._prefills = bool((queries > 1).any())
        self._decodes = bool((queries == 1).any()) or not self._prefills
        if self._prefills:
            prompts = queries > 1
            keys = batch.context_np[: batch.rows][prompts]
            self._means = int(queries[prompts].mean()), int(keys.mean())
        self._work.clear()
        self._plain.plan(batch)
        return queries

    def run_new(
        self,
        layer: Layer,
        qkv: tuple[Tensor, Tensor, Tensor],
        batch: BatchView,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor | None:
        """See backend: where no row has several queries, and few rows and one launch were found to be faster."""
        q_THD, group = qkv[0], layer.heads // layer.kv_heads
        if self.fixed or self._prefills or not records(q_THD.dtype, k_cache.shape[1], group):
            return None
        device = q_THD.device
        config = configs.paged_few(configs.capability(device), layer.head_dim, batch.rows)
        if config is None:
            return None
        out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=device)
        pages, scores = pages_of(layer, batch, k_cache, v_cache), scores_of(layer)
        new, programs = self._new(*qkv, *layer.rotation()), configs.multiprocessors(device) * config.programs
        self._attend_new(new, pages, scores, out, self._workspace(device), config=config, programs=programs)
        return out

    def run(self, layer: Layer, q_THD: Tensor, batch: BatchView, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """Attention of one layer: [T, H, D], in q's dtype; zero for padding after the last row."""
        group = layer.heads // layer.kv_heads
        if not records(q_THD.dtype, k_cache.shape[1], group):
            return self._plain.run(layer, q_THD, batch, k_cache, v_cache)
        device, cap, size = q_THD.device, configs.capability(q_THD.device), layer.head_dim
        self._sizes.add(size)
        out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=device)
        pages, scores = pages_of(layer, batch, k_cache, v_cache), scores_of(layer)
        fixed = rules.paged_fixed(size) if self.fixed else None
        if self._decodes or batch.single:
            config = fixed or configs.paged_decode(cap, size)
            programs = configs.multiprocessors(device) * config.programs
            self._decode(q_THD, pages, scores, out, self._workspace(device), config=config, programs=programs)
        elif batch.tokens < len(out):
            out[batch.tokens :].zero_()
        if self._prefills and not batch.single:
            config = fixed or configs.paged_prefill(cap, size, *self._means)
            work = self._work_list(batch, config.rows // group, device)
            self._prefill(q_THD, pages, scores, out, work, config=config)
        return out

    def _work_list(self, batch: BatchView, span: int, device: torch.device) -> Tensor:
        """[W, 2] on the device; the copy waits for nothing, and pinned memory lives until it is done."""
        if self._recorded:
            place = batch.tokens, span
            if place not in self._kept:
                most = batch.tokens // span + PROMPTS
                self._kept[place] = torch.empty((most, 2), dtype=torch.int32, device=device)
                _refill(self._kept[place], batch, span)
            return self._kept[place]
        if span not in self._work:
            work = _work(batch, span)
            if device.type == "cuda":
                work = work.pin_memory().to(device, non_blocking=True)
            self._work[span] = work
        return self._work[span]

    def _workspace(self, device: torch.device) -> Any:
        if device not in self._workspaces:
            self._workspaces[device] = self._new_workspace(device)
        return self._workspaces[device]


def _work(batch: BatchView, span: int) -> Tensor:
    return torch.from_numpy(
        prefill_work(batch.starts_np[: batch.rows + 1], batch.context_np[: batch.rows], span)
    )


def _refill(kept: Tensor, batch: BatchView, span: int) -> None:
    """Send a list of work that is shorter than its place; the rest of that is no work."""
    work = _work(batch, span)
    padded = torch.full(kept.shape, -1, dtype=torch.int32, pin_memory=kept.is_cuda)
    padded[: len(work)] = work
    kept.copy_(padded, non_blocking=True)
