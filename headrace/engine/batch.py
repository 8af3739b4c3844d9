"""A step as device buffers: allocated once at full size, refilled at every step, shared by eager and graph runs.

T tokens, R rows (sequences in this step), B blocks per sequence at most, G layer groups. On a CPU the device's
buffers are the host's own memory; to a GPU everything a step needs travels in one copy from pinned memory.
A step whose rows all decode sends only what is per row; the rest is derived on the device (`derive`).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.attention.backend import Backend
from headrace.engine.cache import KVCache
from headrace.engine.ends import Ends
from headrace.engine.scheduler import Row
from headrace.engine.staging import Fields, Staging
from headrace.kernels.derive import Kept, Rows, Tokens, derive
from headrace.kernels.rotate import Turns, rotate_store, rotate_store_few
from headrace.kernels.sample import Knobs, Settings
from headrace.nn.attention import Attention
from headrace.nn.rope import Rope
from headrace.nn.step import Step


class Batch:
    """The inputs of one step; also the `Step` that a model's layers see.

    ids, positions [T]; starts [R+1] offsets of the rows' queries; context [R] KV length after this step;
    tables[g] [R, B] block ids of layer group g; slots[g] [T] where each token's k and v go; row_slots [R] each row's
    slot; sample [S] which of the model's results get logits, sample_slots [S] and sample_positions_np [S] the slot and
    the position of what is sampled there. Host copies end in _np.

    `ends`: the model gives a result per row, of its last token, instead of one per token (see Ends).

    `table` [G, slots + 1, B] and `last` [slots + 1] are kept over steps: block ids and the newest token of each
    slot; `stays` on the host alone: how often the slot was given away. The slot after the last one is nobody's; rows
    that pad a graph use it.

    There is room for `prompt_tokens`, and for a token of each row beside them.
    """

    def __init__(self, max_rows: int, prompt_tokens: int, max_blocks: int, cache: KVCache, backend: Backend):
        groups = len(cache.layout.groups)
        self.cache, self.backend = cache, backend
        self.block_size = cache.k[0].shape[1]
        self.device = device = cache.k[0].device
        self.nobody, self.prompt_tokens = max_rows, prompt_tokens
        self.max_tokens = max_tokens = prompt_tokens + max_rows
        fields: Fields = {
            "row_slots": (max_rows, np.int64),
            "patch_at": (max_rows, np.int32),
            "patch_to": (max_rows * groups, np.int32),
            "context": (max_rows, np.int32),
            "starts": (max_rows + 1, np.int32),
            "sample": (max_tokens, np.int64),
            "sample_slots": (max_tokens, np.int64),
            "ids": (max_tokens, np.int64),
            "positions": (max_tokens, np.int64),
            "slots": (groups * max_tokens, np.int64),
        }
        self.staging = Staging(fields, device)
        self.table_np = np.zeros((groups, max_rows + 1, max_blocks), np.int32)
        self.stays = np.zeros(max_rows + 1, np.int64)
        self.table = torch.from_numpy(self.table_np)
        if device.type != "cpu":
            self.table = self.table.to(device)
        self._row_tables = torch.zeros((groups, max_rows, max_blocks), dtype=torch.int32, device=device)
        self._every = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._ends = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._knobs = Knobs(
            torch.zeros((3, max_rows), device=device),
            torch.zeros((2, max_rows), dtype=torch.int64, device=device),
        )
        self.last = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self.rows = self.tokens = self._width = 0
        self.ends = self.single = False
        self._turned: dict[Rope, Turns] = {}
        self._laid_out: tuple[list[Row], dict[str, np.ndarray]] | None = None
        self._padded: dict[int, tuple[Any, ...]] = {}

    # -- what layers see ------------------------------------------------------------------------------------

    def attend(self, layer: Attention, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """QK-norm, RoPE, store into the cache, attention over the pages: [T, H, D]."""
        caches = self.caches(layer)
        if not self.staging.alias:
            out = self.backend.run_new(layer, (q_THD, k_TKD, v_TKD), self, *caches)
            if out is not None:
                return out
        return self.backend.run(layer, self.store(layer, q_THD, k_TKD, v_TKD), self, *caches)

    def store(self, layer: Attention, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """QK-norm, RoPE, store into the cache; returns q."""
        slots_T = self.slots[layer.group]
        if self.staging.alias and layer.rope is not None and layer.q_norm is None:
            turns = self._turns(layer.rope)
            turned = rotate_store_few(q_THD, k_TKD, v_TKD, turns, *self.caches(layer), slots_T)
            if turned is not None:
                return turned
        return rotate_store(
            q_THD, k_TKD, v_TKD, self.positions, *layer.rotation(), *self.caches(layer), slots_T,
            k_scale=layer.k_scale, v_scale=layer.v_scale, deterministic=layer.qkv_proj.deterministic,
        )  # fmt: skip

    def caches(self, layer: Attention) -> tuple[Tensor, Tensor]:
        """Where a layer's keys and values are."""
        return self.cache.k[layer.cache_index], self.cache.v[layer.cache_index]

    @property
    def final(self) -> Step:
        """See Step.final."""
        return Ends(self, self._every[: self.rows + 1]) if self.ends else self

    def keep(self, x_TE: Tensor) -> Tensor:
        """See Step.keep: all of it."""
        return x_TE

    def _turns(self, rope: Rope) -> Turns:
        """Of this step's positions: layers that share a rope share them."""
        if rope not in self._turned:
            self._turned[rope] = Turns.of(self.positions, rope.table)
        return self._turned[rope]

    # -- filling ----------------------------------------------------------------------------------------------

    def fill(
        self,
        step: list[Row],
        pad: int | None = None,
        room: tuple[int, int] | None = None,
        every: bool = True,
    ) -> None:
        """Lay out a step and send it. Rows that `feed` take their input from `last`, where the device left it.

        With `pad` (only where every row feeds) rows of nobody are added up to that many, and nothing but per-row
        numbers is sent: call `derive` for the rest. With `room` the step is laid out for so
        many rows and tokens: rows without tokens and tokens of no row are added; `gather` is to follow. Without `every`
        nothing is wanted of tokens that nothing is sampled behind.
        """
        self._turned.clear()
        if pad is not None:
            self._fill_padded(step, pad)
            return
        n, host = len(step), self._lay_out_rows(step)
        self.row_slots_np, self.context_np = host["row_slots"][:n], host["context"][:n]
        sampled = np.fromiter((row.sampled for row in step), np.int64, n)
        self._fill_tokens(step, host)
        rows, tokens = room or (n, int(host["starts"][n]))
        self.ends = not every and tokens > rows and sampled.max() <= 1
        self._fill_samples(sampled, host)
        self._fill_room(n, rows, tokens, host)
        self.staging.upload()
        if not self.staging.alias:
            self._send_blocks(step)
        self._show(rows, tokens, host)
        if room is None:
            self.gather()
            self.backend.plan(self)

    def lay_out(self, step: list[Row], pad: int) -> None:
        """What of `fill` with `pad` needs only the host: done before it, while what is there now is still of use."""
        n, host = len(step), self._lay_out_rows(step)
        host["row_slots"][n:pad] = self.nobody
        host["context"][n:pad] = 0  # back ends give rows without keys no work
        self._stage_patches(host, step, pad)
        self._laid_out = step, host

    def _fill_padded(self, step: list[Row], pad: int) -> None:
        if self._laid_out is None or self._laid_out[0] is not step:
            self.lay_out(step, pad)
        assert self._laid_out is not None
        (_, host), n, self._laid_out = self._laid_out, len(step), None
        self.row_slots_np, self.context_np = host["row_slots"][:n], host["context"][:n]
        self.sample_slots_np, self.sample_positions_np = self.row_slots_np, self.context_np.astype(np.int64)
        self.staging.upload("context")
        self._show_padded(pad)
        self.ends = False

    def _lay_out_rows(self, step: list[Row]) -> dict[str, np.ndarray]:
        """Slots, lengths and blocks, on the host's next side."""
        n, host = len(step), self.staging.next()
        host["row_slots"][:n] = [row.slot for row in step]
        host["context"][:n] = [row.stop for row in step]
        self._note_blocks(step)
        return host

    def derive(self, knobs: Knobs) -> None:
        """On the device, from per-row numbers and what is kept over steps: all that is per token. One per row.

        `knobs`: how slots draw. See `settings`.
        """
        rows, groups, staged = self.rows, len(self.table), self.staging.device
        patch_to, slots = (staged[name].view(groups, -1)[:, :rows] for name in ("patch_to", "slots"))
        out = Tokens(
            self.ids, self.positions, self._ends[:rows], slots, self._row_tables[:, :rows],
            Knobs(*(table[:, :rows] for table in self._knobs)),
        )  # fmt: skip
        of_rows = Rows(self.row_slots, self.context, staged["patch_at"][:rows], patch_to)
        derive(of_rows, Kept(self.last, self.table, knobs), self.block_size, out)

    def settings(self) -> Settings:
        """How the rows of the step that was derived last draw."""
        return self._knobs.settings(self._ends[: self.rows])

    def _note_blocks(self, step: list[Row]) -> None:
        """Write new block ids into the host's table."""
        for row in step:
            if row.new is not None:
                if row.new.at == 0:
                    self.stays[row.slot] += 1
                for g, ids in enumerate(row.new.ids):
                    self.table_np[g, row.slot, row.new.at : row.new.at + len(ids)] = ids

    def _send_blocks(self, step: list[Row]) -> None:
        """Write new block ids into the device's table."""
        width = self.table_np.shape[2]
        at, to = [], []
        for row in step:
            if row.new is not None:
                for g, ids in enumerate(row.new.ids):
                    first = (g * self.table_np.shape[1] + row.slot) * width + row.new.at
                    at.append(np.arange(first, first + len(ids)))
                    to.append(np.asarray(ids, np.int32))
        if at:
            patches = (torch.from_numpy(np.concatenate(a)).pin_memory() for a in (at, to))
            places, blocks = (patch.to(self.device, non_blocking=True) for patch in patches)
            self.table.view(-1).index_copy_(0, places, blocks)

    def _stage_patches(self, host: dict[str, np.ndarray], step: list[Row], rows: int) -> None:
        """A decoding row gets at most one block per group; -1 stands for none."""
        to = host["patch_to"].reshape(len(self.table_np), -1)
        to[:, :rows] = -1
        host["patch_at"][:rows] = 0
        for n, row in enumerate(step):
            if row.new is not None:
                host["patch_at"][n] = row.new.at
                for g, ids in enumerate(row.new.ids):
                    if ids:
                        (to[g, n],) = ids

    def _fill_tokens(self, step: list[Row], host: dict[str, np.ndarray]) -> None:
        n = len(step)
        first = np.fromiter((row.start for row in step), np.int64, n)
        starts = host["starts"][: n + 1]
        starts[0] = 0
        np.cumsum(self.context_np - first, out=starts[1:])
        total = int(starts[n])
        owner = np.repeat(np.arange(n), np.diff(starts))
        positions = host["positions"][:total]
        positions[:] = np.arange(total) - starts[owner] + first[owner]
        ids = host["ids"]
        for i, row in enumerate(step):
            if row.feeds:
                ids[starts[i]] = -1 - row.slot
            else:
                ids[starts[i] : starts[i + 1]] = [*row.seq.tokens[row.start : row.stop], *row.draft]
        block, offset = positions // self.block_size, positions % self.block_size
        owner_slot = self.row_slots_np[owner]
        for g, table in enumerate(self.table_np):
            host["slots"][g * self.max_tokens :][:total] = (
                table[owner_slot, block].astype(np.int64) * self.block_size + offset
            )

    def _fill_samples(self, counts: np.ndarray, host: dict[str, np.ndarray]) -> None:
        """Each row's last `counts` tokens are sampled behind."""
        ends = counts.cumsum()
        total = int(ends[-1])
        sample = host["sample"][:total]
        sample[:] = np.arange(total) - (ends - host["starts"][1 : len(counts) + 1]).repeat(counts)
        self.sample_slots_np = host["sample_slots"][:total]
        self.sample_slots_np[:] = self.row_slots_np.repeat(counts)
        self.sample_positions_np = host["positions"][sample] + 1
        if self.ends:
            sample[:] = np.arange(len(counts)).repeat(counts)

    def _fill_room(self, n: int, rows: int, tokens: int, host: dict[str, np.ndarray]) -> None:
        """Rows n on have no tokens; tokens that belong to no row are stored where nobody reads."""
        total = int(host["starts"][n])
        host["row_slots"][n:rows] = self.nobody
        host["context"][n:rows] = 0
        host["starts"][n + 1 : rows + 1] = total
        host["ids"][total:tokens] = host["positions"][total:tokens] = 0
        host["slots"].reshape(len(self.table_np), -1)[:, total:tokens] = 0

    def _show(self, rows: int, tokens: int, host: dict[str, np.ndarray]) -> None:
        """Point the public fields at the filled front of the buffers."""
        device = self.staging.device
        self.rows, self.tokens, self.starts_np = rows, tokens, host["starts"][: rows + 1]
        self.context_np = host["context"][:rows]
        self.row_slots = device["row_slots"][:rows]
        self.starts, self.context = device["starts"][: rows + 1], device["context"][:rows]
        self.positions = device["positions"][:tokens]
        self.slots = list(device["slots"].view(len(self.table), -1)[:, :tokens])
        sampled = len(self.sample_slots_np)
        self.sample, self.sample_slots = device["sample"][:sampled], device["sample_slots"][:sampled]
        self._width = -(-int(self.context_np.max()) // self.block_size)

    def gather(self, width: int | None = None) -> None:
        """On the device: the rows' block tables, up to `width` blocks or as many as the step has; the rows' inputs."""
        width = width or self._width
        self.tables = [table[:, :width].index_select(0, self.row_slots) for table in self.table]
        ids = self.staging.device["ids"][: self.tokens]
        self.ids = torch.where(ids < 0, self.last[(-1 - ids).clamp_(min=0)], ids)

    def _show_padded(self, rows: int) -> None:
        """As `_show`, for rows of one token: of each number of rows once, as slices take longer than numbers."""
        if rows not in self._padded:
            device = self.staging.device
            self._padded[rows] = (
                self._every[: rows + 1],
                np.arange(rows + 1, dtype=np.int32),
                *(device[name][:rows] for name in ("row_slots", "context", "ids", "positions")),
                list(device["slots"].view(len(self.table), -1)[:, :rows]),
                [tables[:rows] for tables in self._row_tables],
            )
        self.rows = self.tokens = rows
        (
            self.starts, self.starts_np, self.row_slots, self.context, self.ids, self.positions, self.slots, self.tables
        ) = self._padded[rows]  # fmt: skip
        self.sample_slots = self.row_slots[: len(self.sample_slots_np)]
