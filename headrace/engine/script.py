"""A decoder's step on a CPU as one call: torch's own interpreter runs its operators, with no Python between them.

Of one token, calls from Python take longer than what they compute. The program (program.py) says the same as the layers
of headrace/nn that it stands in for, of models whose layers are all alike and prepacked.

T tokens, H query heads, K kv heads, D head size, E hidden size.
"""

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from threading import Semaphore
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.engine.batch import Batch
from headrace.engine.halves import Part, halfway, middle
from headrace.engine.lanes import QUERIES, Lanes, Load, narrow
from headrace.engine.program import KEYS, hidden, program
from headrace.engine.reach import NO_BIAS, NONE, Keys, bunches
from headrace.engine.resolve import Plan
from headrace.engine.same_bits import keeps
from headrace.kernels.activation import silu_mul
from headrace.kernels.int8 import LIFT
from headrace.kernels.rotate import Turns
from headrace.nn.decoder import Block, Decoder
from headrace.nn.linear import Linear
from headrace.nn.mlp import ACTIVATIONS
from headrace.nn.norm import RMSNorm
from headrace.nn.prepacked import Prepacked


class Script:
    """Runs the steps of a model on a batch, for which `unfit` must be None."""

    def __init__(self, model: Decoder, batch: Batch):
        self._model, self._batch = model, batch
        blocks = _blocks(model)
        attention, layers = blocks[0].self_attn, [layer for block in blocks for layer in _linears(block)]
        packed = [layer.packed for layer in layers if isinstance(layer.packed, Prepacked)]
        assert attention.rope is not None
        assert packed[3].factors is not None
        self._rope = attention.rope
        self._scale = torch.ones(attention.heads + attention.kv_heads, 1, device="cpu")
        self._scale[: attention.heads] = attention.scale  # of queries: part of what rotates them
        none = torch.zeros(1, device="cpu")
        short = torch.float32 if model.deterministic else narrow()
        head_eps = 0.0 if attention.q_norm is None else attention.q_norm.eps
        self._layers: tuple[list[Any], ...] = (
            [weight.weight.packed for weight in packed],
            [weight.weight.sums_N for weight in packed],
            [none if layer.bias is None else layer.bias.data for layer in layers],
            [_head_weights(block) for block in blocks if block.self_attn.q_norm is not None],
            [cache.flatten(0, 1) for cache in batch.cache.k],
            [cache.flatten(0, 1) for cache in batch.cache.v],
        )
        self._rest: tuple[Any, ...] = (
            len(blocks),
            torch.full((1, 1), blocks[0].input_layernorm.eps / LIFT**2, device="cpu"),
            1 / (model.shape.hidden * LIFT**2),
            torch.full((1, 1, 1), head_eps, device="cpu"),
            torch.full((1, 1), LIFT, device="cpu"),
            *packed[3].factors,
            attention.heads,
            attention.kv_heads,
            packed[0].weight.levels,
            torch.full((1, 1), 1 / packed[0].weight.levels, device="cpu"),
            torch.full((1, 1), float(packed[0].weight.middle), device="cpu"),
            any(layer.bias is not None for layer in layers),
            hidden(short),
        )
        halves = 2 - torch.get_num_threads() % 2
        self._lanes = [Lanes(batch.cache, short, halves) for _ in range(halves)]
        self._step = program(model.deterministic).step
        numbers = sum(weight.weight.shape[0] * weight.weight.shape[1] for weight in packed[:4])
        self._worth = numbers / (4 * attention.heads * attention.head_dim)
        self._whole = KEYS if model.deterministic else 1
        self._other = ThreadPoolExecutor(1, "half")

    def __call__(self, wanted: Tensor | None = None) -> Tensor:
        """[T, E] of the step that the batch was filled with, after the last norm.

        wanted: of which tokens, in order; what stands there of others is of no use. None: of all
        """
        batch = self._batch
        if wanted is None:
            wanted = torch.arange(batch.tokens, device="cpu")
        x_TE = self._model.embed_tokens(batch.ids)
        cos, sin = Turns.of(batch.positions, self._rope.table)
        tokens = x_TE, cos * self._scale, sin * self._scale, batch.slots[0]
        threads = torch.get_num_threads()
        if threads % 2 == 0 and (cut := middle(batch.starts_np, batch.context_np, QUERIES, self._worth)):
            self._halves(tokens, wanted, cut, threads)
        else:
            keys = self._keys(Part.of(batch, 0, len(x_TE)))
            self._step(*tokens, wanted, *keys, 0, *self._layers, *self._rest)
        return self._model.norm(x_TE)

    def _halves(self, tokens: tuple[Tensor, ...], wanted: Tensor, cut: int, threads: int) -> None:
        """The tokens before `cut` and the others, each on half of the threads: these need not wait for each other."""
        batch, done = self._batch, Semaphore(0)
        parts = Part.of(batch, 0, cut), Part.of(batch, cut, len(tokens[0]))
        cuts_row = cut not in batch.starts_np
        before = int((wanted < cut).sum())
        asked = wanted[:before], wanted[before:] - cut
        given = [
            (*(each[part.start : part.stop] for each in tokens), some, *self._keys(part))
            for part, some in zip(parts, asked, strict=True)
        ]

        def run(half: int) -> None:
            torch.set_num_threads(threads // 2)
            with torch.inference_mode():
                if not cuts_row:
                    self._step(*given[half], 0, *self._layers, *self._rest)
                    return
                try:  # the second half of a row sees the keys of the first, layer by layer
                    for n in range(len(self._layers[-1])):
                        if half:
                            done.acquire()
                        self._step(*given[half], n, *self._layer(n), *self._rest)
                        if not half:
                            done.release()
                finally:
                    done.release(len(self._layers[-1]))

        second = self._other.submit(run, 1)
        try:
            run(0)
        finally:
            wait([second])
            torch.set_num_threads(threads)
        second.result()

    def _layer(self, n: int) -> list[list[Any]]:
        """Of `_layers` what belongs to number n."""
        counts = [len(each) // len(self._layers[-1]) for each in self._layers]
        return [each[n * count : (n + 1) * count] for each, count in zip(self._layers, counts, strict=True)]

    def _keys(self, part: Part) -> tuple[list[Tensor], list[Tensor], list[int], list[int]]:
        """What `attend` takes after the caches."""
        starts, context, tables, size = part.starts_np, part.context_np, part.tables_np, part.block_size
        tensors: list[Tensor] = []
        one: list[int] = []
        several: list[int] = []
        found, rows = bunches(starts, context, tables, size, *self._sizes, self._whole)
        loads, rows = self._load(part, rows)
        for bunch in found:
            tensors += (bunch.queries, bunch.common.slots, bunch.cells, bunch.bias)
            one += (bunch.common.first, bunch.common.last)
        single = starts[rows + 1] - starts[rows] == 1
        for row in rows[single].tolist():
            # Its keys need no padding, hence no copy where they lie one behind the other.
            slots, first, last = Keys.of(tables[row], int(context[row]), size)
            tensors += (torch.from_numpy(starts[row : row + 1].astype(np.int64)), slots, NONE, NO_BIAS)
            one += (first, last)
        for row in rows[~single].tolist():
            slots, first, last = Keys.of(tables[row], int(context[row]), size)
            tensors.append(slots)
            several += (int(starts[row]), int(starts[row + 1]), first, last)
        return [tensor for load in loads for tensor in load], tensors, one, several

    def _load(self, part: Part, rows: np.ndarray) -> tuple[list[Load], np.ndarray]:
        """As Lanes.load. Each half of the rows that decode has lanes of its own, also where one part has them all."""
        loads: list[Load] = []
        bound, left = len(part.context_np), []
        if len(self._lanes) > 1:
            bound = halfway(self._batch.starts_np, QUERIES) - part.first
        for lanes, some in zip(self._lanes, (rows[rows < bound], rows[rows >= bound]), strict=False):
            if len(some) or not part.start:
                more, some = lanes.load(part, some)
                loads += more
            left.append(some)
        return loads, np.concatenate(left)

    @property
    def _sizes(self) -> tuple[int, int]:
        layer = _blocks(self._model)[0].self_attn
        return layer.kv_heads, layer.head_dim


def unfit(model: Decoder, plan: Plan) -> str | None:
    """Why the program does not say what this model's layers say; None where it does."""
    if plan.device.type != "cpu":
        return f"runs on {plan.device}"
    blocks = _blocks(model)
    layers = [block.self_attn for block in blocks]
    kinds = {(layer.rope, layer.window, layer.softcap, layer.k_scale, layer.v_scale) for layer in layers}
    rope, *others = kinds.pop() if len(kinds) == 1 else (None,)
    reasons = {
        "has layers of several kinds": any(type(block) is not Block for block in model.blocks) or kinds,
        "rotates nothing, or only parts of heads": rope is None or rope.table.shape[1] != layers[0].head_dim,
        "has a window or a cap on scores": others != [None, None, 1.0, 1.0],
        "activates by another function": any(ACTIVATIONS[block.mlp.act] is not silu_mul for block in blocks),
        "is not prepacked": not all(_prepacked(block) for block in blocks),
        "has norms with weights": any(
            bool((n.weight + n.offset != 1).any()) for b in blocks for n in _norms(b)
        ),
        "has another cache": plan.kv_dtype != torch.float32,
    }
    if model.deterministic and not any(reasons.values()):
        reasons["gives a row other bits in other company"] = not _keeps(blocks[0], model.shape.hidden)
    return next((reason for reason, holds in reasons.items() if holds), None)


def _keeps(block: Block, columns: int) -> bool:
    """Whether a layer's functions give a row the same bits in any company."""
    made, layer = program(True), block.self_attn
    packed = [one.packed for one in _linears(block) if isinstance(one.packed, Prepacked)]
    assert packed[3].factors is not None
    far, near = packed[3].factors
    inner, eps = packed[3].weight.shape[1], torch.full((1, 1), block.input_layernorm.eps, device="cpu")
    rows = [
        *((partial(_product, made, one), one.weight.shape[1]) for one in packed),
        (lambda x: made.turn(x, far, near), inner),
        (lambda x: made.gated(x), 2 * inner),
        (lambda x: made.shrink(x, eps, 1 / columns), columns),
        (
            lambda x: made.shrink(x.view(len(x), -1, layer.head_dim), eps, 1 / layer.head_dim),
            4 * layer.head_dim,
        ),
    ]
    return keeps(made, rows, (layer.kv_heads, layer.heads // layer.kv_heads, layer.head_dim))


def _product(made: torch.jit.CompilationUnit, packed: Prepacked, x: Tensor) -> Tensor:
    weight, one = packed.weight, torch.ones(1, 1, device="cpu")
    levels = weight.levels, one / weight.levels, one * weight.middle
    return made.product(x, one * LIFT, weight.packed, weight.sums_N, *levels)


def _blocks(model: Decoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _linears(block: Block) -> tuple[Linear, ...]:
    return block.self_attn.qkv_proj, block.self_attn.o_proj, block.mlp.gate_up_proj, block.mlp.down_proj


def _norms(block: Block) -> tuple[RMSNorm, ...]:
    return block.input_layernorm, block.post_attention_layernorm


def _prepacked(block: Block) -> bool:
    """With inputs turned of the last product alone."""
    packed = [layer.packed for layer in _linears(block)]
    turned = [isinstance(one, Prepacked) and one.factors is not None for one in packed]
    return all(isinstance(one, Prepacked) for one in packed) and turned == [False, False, False, True]


def _head_weights(block: Block) -> Tensor:
    """[H + K, D]: what queries and keys are multiplied by after their norm."""
    layer = block.self_attn
    assert layer.q_norm is not None
    assert layer.k_norm is not None
    q, k = (norm.weight.float() + norm.offset for norm in (layer.q_norm, layer.k_norm))
    return torch.cat((q.expand(layer.heads, -1), k.expand(layer.kv_heads, -1)))
