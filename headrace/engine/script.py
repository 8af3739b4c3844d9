"""A decoder's step on a CPU as one call: torch's own interpreter runs its operators, with no Python between them.

Of one token, calls from Python take longer than what they compute. The program below is TorchScript, a part of Python;
it says the same as the layers of headrace/nn that it stands in for, of models whose layers are all alike and prepacked.

T tokens, H query heads, K kv heads, G = H / K, D head size, E hidden size, S keys of a row.
"""

from typing import Any

import torch
from torch import Tensor

from headrace.engine.batch import Batch
from headrace.engine.lanes import Lanes, narrow
from headrace.engine.reach import alone, bunches, stretch
from headrace.kernels.activation import silu_mul
from headrace.kernels.hadamard import factors
from headrace.kernels.int8 import LIFT
from headrace.kernels.rotate import Turns
from headrace.nn.decoder import Block, Decoder
from headrace.nn.linear import Linear
from headrace.nn.mlp import ACTIVATIONS
from headrace.nn.norm import RMSNorm
from headrace.nn.prepacked import Prepacked

BLOCK = 128
"""Queries of a row whose scores are made at once: few enough not to make many that are hidden."""

SOURCE = """
def product(
    x: Tensor, factor: Tensor, packed: __torch__.torch.classes.quantized.LinearPackedParamsBase, sums: Tensor,
    levels: int, inverse: Tensor, centre: Tensor,
) -> Tensor:
    # As Int8Weight.product, times a factor per token, which includes what inputs are lifted by. `inverse` and `centre`
    # are tensors: plain numbers are made into some at every call.
    if x.size(0) == 1:
        return torch.ops.quantized.linear_dynamic(x * factor, packed, levels == 127)
    low = x.amin(-1, True).clamp_(max=0)
    step = x.amax(-1, True).clamp_(min=0).sub_(low).mul_(inverse).clamp_(min=1e-30)
    shift = low.div_(step).round_().add_(centre)
    # addcdiv and addcmul go number by number where two of their tensors have one column: up to six times slower.
    whole = x.div(step).sub_(shift)
    out = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(whole, 1.0, levels // 2 + 1, packed)
    return out.addcmul_(shift, sums).mul_(step.mul_(factor))


def turn(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    # Neighbours by the Hadamard matrix left (x) right: two small products for one large.
    y = torch.mm(x.view(-1, right.size(0)), right).view(-1, left.size(0), right.size(0))
    return torch.bmm(left.unsqueeze(0).expand(y.size(0), -1, -1), y).view(x.size(0), -1)


def shrink(x: Tensor, eps: Tensor, part: float) -> Tensor:
    # What RMSNorm multiplies each token by.
    length = torch.ops.aten.linalg_vector_norm(x, 2, [-1], True)
    return torch.addcmul(eps, length, length, value=part).rsqrt_()


def keys_of(cache: Tensor, slots: Tensor, first: int, last: int) -> Tensor:
    if last > first:
        return cache[first:last]
    return cache.index_select(0, slots)


def quick(x: Tensor, like: Tensor) -> Tensor:
    # In the dtype of `like`, and then in one piece, if that is another one.
    return x.to(like.dtype, memory_format=torch.contiguous_format)


def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_heads: int, slots: Tensor, first: int, last: int,
    cells: Tensor, bias: Tensor, hidden: Tensor,
) -> Tensor:
    # q [R N, H, D] of rows with N queries each, see Bunch: [R N, H D].
    tokens, size = q.size(0), q.size(2)
    if tokens > 1:
        q = q.view(tokens, kv_heads, -1, size).transpose(0, 1)
    q = q.reshape(kv_heads, -1, size)
    if cells.numel() == 0:
        k = keys_of(k_cache, slots, first, last)
        v = keys_of(v_cache, slots, first, last)
        weights = torch.bmm(q, k.permute(1, 2, 0)).softmax(-1)
        out = torch.bmm(weights, v.transpose(0, 1))
    else:
        rows, most, own = bias.size(0), bias.size(1), bias.size(3)
        k = k_cache.view(-1, size).index_select(0, cells).view(-1, own, size)
        v = v_cache.view(-1, size).index_select(0, cells).view(-1, own, size)
        far = keys_of(k_cache, slots, first, last).transpose(0, 1)
        value = keys_of(v_cache, slots, first, last).transpose(0, 1)
        if most > 9:  # as in `stretch`
            q, k, v = quick(q, hidden), quick(k, hidden), quick(v, hidden)
            far, value = quick(far, hidden), quick(value, hidden)
        pairs, shared = kv_heads * rows, far.size(1)
        near = torch.bmm(q.view(pairs, -1, size), k.transpose(1, 2))
        near.view(kv_heads, rows, most, -1, own).add_(bias)
        scores = torch.cat((torch.bmm(q, far.transpose(1, 2)), near.view(kv_heads, -1, own)), -1)
        weights = scores.softmax(-1)
        out = torch.bmm(weights[:, :, :shared], value)
        out = torch.baddbmm(out.view(pairs, -1, size), weights[:, :, shared:].reshape(pairs, -1, own), v)
    if tokens > 1:
        out = out.view(kv_heads, tokens, -1).transpose(0, 1)
    return out.reshape(tokens, -1)


def stretch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_heads: int, slots: Tensor, first: int, last: int, hidden: Tensor,
) -> Tensor:
    # q [T, H, D] of one row: [T, H D]. A block of queries at a time meets the keys that its last one sees; `hidden`
    # [block, 1, block] is what is added to scores of the newest.
    tokens, size, block = q.size(0), q.size(2), hidden.size(0)
    q = q.view(tokens, kv_heads, -1, size).transpose(0, 1)
    group = q.size(2)
    # Few queries are guesses (lanes.QUERIES at most): as exact as a token without, and no two steps have like shapes.
    like = hidden if tokens > 9 else q
    q = quick(q, like).reshape(kv_heads, -1, size)
    k = quick(keys_of(k_cache, slots, first, last).transpose(0, 1), like).transpose(1, 2)
    v = quick(keys_of(v_cache, slots, first, last).transpose(0, 1), like)
    made: List[Tensor] = []
    for start in range(0, tokens, block):
        count = min(block, tokens - start)
        seen = k.size(2) - tokens + start + count
        scores = torch.bmm(q[:, start * group : (start + count) * group], k[:, :, :seen])
        newest = scores.view(kv_heads, count, group, seen)[:, :, :, seen - count :]
        newest.add_(hidden[:count, :, :count])
        made.append(torch.bmm(scores.softmax(-1), v[:, :seen]))
    out = made[0] if len(made) == 1 else torch.cat(made, 1)
    return out.view(kv_heads, tokens, -1).transpose(0, 1).reshape(tokens, -1)


def among(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_heads: int, k_lanes: Tensor, v_lanes: Tensor, queries: Tensor,
    source: Tensor, target: Tensor, bias: Tensor,
) -> Tensor:
    # See Load: [R N, H D].
    size, rows, most, keys = q.size(2), bias.size(0), bias.size(2), bias.size(4)
    k_lanes.view(-1, size).index_copy_(0, target, k_cache.view(-1, size).index_select(0, source))
    v = v_cache.view(-1, size).index_select(0, source).to(v_lanes.dtype)
    v_lanes.view(-1, size).index_copy_(0, target, v)
    if queries.numel() > 0:
        q = q.index_select(0, queries)
    q = q.reshape(rows, most, kv_heads, -1)
    if most > 1:
        q = q.transpose(1, 2)
    pairs = rows * kv_heads
    scores = torch.bmm(q.reshape(pairs, -1, size), k_lanes[:pairs, :keys].transpose(1, 2))
    scores.view(rows, kv_heads, most, -1, keys).add_(bias)
    out = torch.bmm(scores.softmax(-1).to(v_lanes.dtype), v_lanes[:pairs, :keys]).to(q.dtype)
    if most > 1:
        out = out.view(rows, kv_heads, most, -1).transpose(1, 2)
    return out.reshape(rows * most, -1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, kv_heads: int, layer: int, loads: List[Tensor], tensors: List[Tensor],
    bunches: List[int], stretches: List[int], hidden: Tensor,
) -> Tensor:
    # loads: as in Load. tensors: per bunch queries, slots, cells, bias; per stretch slots. bunches: first, last.
    # stretches: start, stop, first, last.
    if len(tensors) == 0 and len(loads) == 6 and loads[2].numel() == 0:
        return among(
            q, k, v, kv_heads, loads[0][layer], loads[1][layer], loads[2], loads[3], loads[4], loads[5]
        )
    if len(bunches) == 2 and len(stretches) == 0 and q.size(0) == 1:
        return decode(q, k, v, kv_heads, tensors[1], bunches[0], bunches[1], tensors[2], tensors[3], hidden)
    out = q.new_zeros(q.size(0), q.size(1) * q.size(2))
    for i in range(0, len(loads), 6):
        queries = loads[i + 2]
        made = among(
            q, k, v, kv_heads, loads[i][layer], loads[i + 1][layer], queries, loads[i + 3], loads[i + 4],
            loads[i + 5],
        )
        out.index_copy_(0, queries, made)
    for i in range(len(bunches) // 2):
        queries, slots, cells, bias = tensors[4 * i], tensors[4 * i + 1], tensors[4 * i + 2], tensors[4 * i + 3]
        first, last = bunches[2 * i], bunches[2 * i + 1]
        made = decode(q.index_select(0, queries), k, v, kv_heads, slots, first, last, cells, bias, hidden)
        out.index_copy_(0, queries, made.to(out.dtype))
    at = 2 * len(bunches)
    for i in range(len(stretches) // 4):
        start, stop, first, last = (
            stretches[4 * i], stretches[4 * i + 1], stretches[4 * i + 2], stretches[4 * i + 3]
        )
        out[start:stop] = stretch(
            q[start:stop], k, v, kv_heads, tensors[at + i], first, last, hidden
        )
    return out


def step(
    x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, loads: List[Tensor], tensors: List[Tensor],
    bunches: List[int], stretches: List[int],
    packed: List[__torch__.torch.classes.quantized.LinearPackedParamsBase], sums: List[Tensor],
    biases: List[Tensor], head_norms: List[Tensor], k_caches: List[Tensor], v_caches: List[Tensor],
    eps: Tensor, part: float, head_eps: Tensor, lift: Tensor, left: Tensor, right: Tensor,
    heads: int, kv_heads: int, levels: int, inverse: Tensor, centre: Tensor, biased: bool, hidden: Tensor,
) -> Tensor:
    # x [T, E], written over: the hidden states before the last norm.
    # `eps` and `part` make that a norm lifts what it gives, too.
    tokens = x.size(0)
    both, half = heads + kv_heads, cos.size(-1) // 2
    for i in range(len(k_caches)):
        k_cache, v_cache = k_caches[i], v_caches[i]
        y = product(x, shrink(x, eps, part), packed[4 * i], sums[4 * i], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i])
        y = y.view(tokens, both + kv_heads, -1)
        qk, v = y[:, :both], y[:, both:]
        if len(head_norms) > 0:
            qk = qk * shrink(qk, head_eps, 0.5 / half) * head_norms[i]
        qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
        k_cache.index_copy_(0, slots, qk[:, heads:])
        v_cache.index_copy_(0, slots, v)
        y = attend(qk[:, :heads], k_cache, v_cache, kv_heads, i, loads, tensors, bunches, stretches, hidden)
        y = product(y, lift, packed[4 * i + 1], sums[4 * i + 1], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i + 1])
        x.add_(y)
        y = product(x, shrink(x, eps, part), packed[4 * i + 2], sums[4 * i + 2], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i + 2])
        inner = y.size(1) // 2
        y = torch.ops.aten.silu(y[:, :inner]).mul_(y[:, inner:])
        y = product(turn(y, left, right), lift, packed[4 * i + 3], sums[4 * i + 3], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i + 3])
        x.add_(y)
    return x
"""


class Script:
    """Runs the steps of a model on a batch, for which `unfit` must be None."""

    def __init__(self, model: Decoder, batch: Batch):
        self._model, self._batch = model, batch
        blocks = _blocks(model)
        attention, layers = blocks[0].self_attn, [layer for block in blocks for layer in _linears(block)]
        packed = [layer.packed for layer in layers if isinstance(layer.packed, Prepacked)]
        assert attention.rope is not None
        assert packed[3].matrix is not None
        self._rope = attention.rope
        self._scale = torch.ones(attention.heads + attention.kv_heads, 1, device="cpu")
        self._scale[: attention.heads] = attention.scale  # of queries: part of what rotates them
        none = torch.zeros(1, device="cpu")
        head_eps = 0.0 if attention.q_norm is None else attention.q_norm.eps
        self._model_s: tuple[Any, ...] = (
            [weight.weight.packed for weight in packed],
            [weight.weight.sums_N for weight in packed],
            [none if layer.bias is None else layer.bias.data for layer in layers],
            [_head_weights(block) for block in blocks if block.self_attn.q_norm is not None],
            [cache.flatten(0, 1) for cache in batch.cache.k],
            [cache.flatten(0, 1) for cache in batch.cache.v],
            torch.full((1, 1), blocks[0].input_layernorm.eps / LIFT**2, device="cpu"),
            1 / (model.shape.hidden * LIFT**2),
            torch.full((1, 1, 1), head_eps, device="cpu"),
            torch.full((1, 1), LIFT, device="cpu"),
            *factors(packed[3].matrix),
            attention.heads,
            attention.kv_heads,
            packed[0].weight.levels,
            torch.full((1, 1), 1 / packed[0].weight.levels, device="cpu"),
            torch.full((1, 1), float(packed[0].weight.middle), device="cpu"),
            any(layer.bias is not None for layer in layers),
            torch.full((BLOCK, BLOCK), float("-inf"), device="cpu").triu(1).unsqueeze(1).to(narrow()),
        )
        self._lanes = Lanes(batch.cache)
        self._step = torch.jit.CompilationUnit(SOURCE).step

    def __call__(self) -> Tensor:
        """[T, E] of the step that the batch was filled with, after the last norm."""
        batch = self._batch
        x_TE = self._model.embed_tokens(batch.ids)
        cos, sin = Turns.of(batch.positions, self._rope.table)
        x_TE = self._step(
            x_TE, cos * self._scale, sin * self._scale, batch.slots[0], *self._keys(), *self._model_s
        )
        return self._model.norm(x_TE)

    def _keys(self) -> tuple[list[Tensor], list[Tensor], list[int], list[int]]:
        """What `attend` takes after the caches."""
        batch = self._batch
        where = batch.starts_np, batch.context_np, batch.tables[0].numpy()
        tensors: list[Tensor] = []
        one: list[int] = []
        several: list[int] = []
        found, rows = bunches(*where, batch.block_size, *self._sizes)
        loads, rows = self._lanes.load(batch, rows)
        single = batch.starts_np[rows + 1] - batch.starts_np[rows] == 1
        found += [alone(*where, row, batch.block_size) for row in rows[single].tolist()]
        for bunch in found:
            tensors += (bunch.queries, bunch.common.slots, bunch.cells, bunch.bias)
            one += (bunch.common.first, bunch.common.last)
        for n in rows[~single].tolist():
            row = stretch(*where, n, batch.block_size)
            tensors.append(row.keys.slots)
            several += (row.start, row.stop, row.keys.first, row.keys.last)
        return [tensor for load in loads for tensor in load], tensors, one, several

    @property
    def _sizes(self) -> tuple[int, int]:
        layer = _blocks(self._model)[0].self_attn
        return layer.kv_heads, layer.head_dim


def unfit(model: Decoder, batch: Batch) -> str | None:
    """Why the program does not say what this model's layers say; None where it does."""
    blocks = _blocks(model)
    layers = [block.self_attn for block in blocks]
    kinds = {
        (layer.rope, layer.window, layer.softcap, layer.group, layer.k_scale, layer.v_scale)
        for layer in layers
    }
    rope, *others = kinds.pop() if len(kinds) == 1 else (None,)
    caches = (*batch.cache.k, *batch.cache.v)
    reasons = {
        "has layers of several kinds": any(type(block) is not Block for block in model.blocks) or kinds,
        "rotates nothing, or only parts of heads": rope is None or rope.table.shape[1] != layers[0].head_dim,
        "has a window, a cap on scores or several caches": others != [None, None, 0, 1.0, 1.0],
        "activates by another function": any(ACTIVATIONS[block.mlp.act] is not silu_mul for block in blocks),
        "is not prepacked": not all(_prepacked(block) for block in blocks),
        "is deterministic": model.deterministic,
        "has norms with weights": any(
            bool((n.weight + n.offset != 1).any()) for b in blocks for n in _norms(b)
        ),
        "has another cache": any(cache.dtype != torch.float32 or cache.is_cuda for cache in caches),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _blocks(model: Decoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _linears(block: Block) -> tuple[Linear, ...]:
    return block.self_attn.qkv_proj, block.self_attn.o_proj, block.mlp.gate_up_proj, block.mlp.down_proj


def _norms(block: Block) -> tuple[RMSNorm, ...]:
    return block.input_layernorm, block.post_attention_layernorm


def _prepacked(block: Block) -> bool:
    """With inputs turned of the last product alone."""
    packed = [layer.packed for layer in _linears(block)]
    turned = [isinstance(one, Prepacked) and one.matrix is not None for one in packed]
    return all(isinstance(one, Prepacked) for one in packed) and turned == [False, False, False, True]


def _head_weights(block: Block) -> Tensor:
    """[H + K, D]: what queries and keys are multiplied by after their norm."""
    layer = block.self_attn
    assert layer.q_norm is not None
    assert layer.k_norm is not None
    q, k = (norm.weight.float() + norm.offset for norm in (layer.q_norm, layer.k_norm))
    return torch.cat((q.expand(layer.heads, -1), k.expand(layer.kv_heads, -1)))
