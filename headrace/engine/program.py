"""A decoder's step in TorchScript, a part of Python: what engine/script.py runs, as text.

T tokens, H query heads, K kv heads, G = H / K, D head size, E hidden size, S keys of a row, M rows of a product.

FIXED stands for whether a row's bits must not depend on what shares its step, nor on how its prompt is cut. Sums of
integers are exact, and what goes number by number rounds once at a time then. Products of floats are left to the
library, which adds up in order, number after number, as long as there are at least 4 rows, at least 16 columns
and at most KEYS products to a sum: then neither rows, nor keys at the end that weigh nothing, nor threads change a bit.
That the machine's library does so is tried at start: same_bits.py.
"""

import re

import torch
from torch import Tensor

from headrace.kernels.fixed import SERIAL

KEYS = 128
"""Keys whose values are added up at once where bits must not change: so many the library adds up in order."""
BLOCK = 128
"""Queries of a row whose scores are made at once: few enough not to make many that are hidden."""

SOURCE = """
def product(
    x: Tensor, factor: Tensor, packed: __torch__.torch.classes.quantized.LinearPackedParamsBase, sums: Tensor,
    levels: int, inverse: Tensor, centre: Tensor,
) -> Tensor:
    # As Int8Weight.product, times a factor per token, which includes what inputs are lifted by. `inverse` and `centre`
    # are tensors: plain numbers are made into some at every call.
    if x.size(0) == 1 and not FIXED:
        return torch.ops.quantized.linear_dynamic(x * factor, packed, levels == 127)
    low = x.amin(-1, True).clamp_(max=0)
    step = x.amax(-1, True).clamp_(min=0).sub_(low).mul_(inverse).clamp_(min=1e-30)
    shift = low.div_(step).round_().add_(centre)
    # addcdiv and addcmul go number by number where two of their tensors have one column: up to six times slower.
    whole = x.div(step).sub_(shift)
    out = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(whole, 1.0, levels // 2 + 1, packed)
    if FIXED:
        return out.add_(shift * sums).mul_(step.mul_(factor))
    return out.addcmul_(shift, sums).mul_(step.mul_(factor))


def turn(x: Tensor, far: Tensor, near: Tensor) -> Tensor:
    # As kernels.hadamard.mixed.
    y = torch.mm(x.view(-1, near.size(0)), near).view(x.size(0), far.size(0), -1)
    return torch.bmm(far.unsqueeze(0).expand(y.size(0), -1, -1), y).view(x.size(0), -1)


def shrink(x: Tensor, eps: Tensor, part: float) -> Tensor:
    # What RMSNorm multiplies each token by.
    length = torch.ops.aten.linalg_vector_norm(x, 2, [-1], True)
    if FIXED:
        return length.square_().mul_(part).add_(eps).rsqrt_()
    return torch.addcmul(eps, length, length, value=part).rsqrt_()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    swapped = x.roll(cos.size(-1) // 2, -1)
    if FIXED:
        return (x * cos).add_(swapped.mul_(sin))
    return torch.addcmul(x * cos, swapped, sin)


def gated(y: Tensor) -> Tensor:
    inner = y.size(1) // 2
    if not FIXED:
        return torch.ops.aten.silu(y[:, :inner]).mul_(y[:, inner:])
    # exp is another one for what is left of a row, or of a thread's part, by whole vectors: parts are whole rows.
    made = y.new_empty(y.size(0), inner)
    some = max(1, SERIAL // inner)
    for start in range(0, y.size(0), some):
        part = y[start : start + some]
        torch.mul(torch.ops.aten.silu(part[:, :inner]), part[:, inner:], out=made[start : start + some])
    return made


def enough(x: Tensor, least: int) -> Tensor:
    # [B, M, D] with zeros up to a multiple of `least` rows, if these are few: the library adds up few another way.
    if FIXED and x.size(1) < 16 and x.size(1) % least > 0:
        return torch.constant_pad_nd(x, [0, 0, 0, -x.size(1) % least])
    return x


def tile(weights: Tensor, v: Tensor, start: int) -> Tensor:
    some = enough(weights[:, :, start : start + KEYS], 4)
    v = v[:, start : start + KEYS]
    if v.size(1) < 16:
        some, v = torch.constant_pad_nd(some, [0, 16 - v.size(1)]), enough(v, 16)
    return torch.bmm(some, v)


def summed(weights: Tensor, v: Tensor) -> Tensor:
    # weights [B, M, S] @ v [B, S, D], cut where the library would begin to cut by itself.
    if not FIXED:
        return torch.bmm(weights, v)
    out = tile(weights, v, 0)
    for start in range(KEYS, v.size(1), KEYS):
        out.add_(tile(weights, v, start))
    return out


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
        k, v = enough(k.transpose(0, 1), 16), enough(v.transpose(0, 1), 16)
        scores = torch.bmm(enough(q, 4), k.transpose(1, 2))
        if FIXED and last - first + slots.numel() < 16:
            scores[:, :, last - first + slots.numel() :] = -float("inf")
        out = summed(scores.softmax(-1), v)[:, : q.size(1)]
    else:
        rows, most, own = bias.size(0), bias.size(1), bias.size(3)
        k = k_cache.view(-1, size).index_select(0, cells).view(-1, own, size)
        v = v_cache.view(-1, size).index_select(0, cells).view(-1, own, size)
        far = keys_of(k_cache, slots, first, last).transpose(0, 1)
        value = keys_of(v_cache, slots, first, last).transpose(0, 1)
        if most > 9 and not FIXED:  # as in `stretch`
            q, k, v = quick(q, hidden), quick(k, hidden), quick(v, hidden)
            far, value = quick(far, hidden), quick(value, hidden)
        pairs, shared = kv_heads * rows, far.size(1)
        mine = q.view(pairs, -1, size)
        each = mine.size(1)
        near = torch.bmm(enough(mine, 4), k.transpose(1, 2))
        if near.size(1) > each:
            near = near[:, :each].contiguous()
        near.view(kv_heads, rows, most, -1, own).add_(bias)
        scores = torch.cat((torch.bmm(q, far.transpose(1, 2)), near.view(kv_heads, -1, own)), -1)
        weights = scores.softmax(-1)
        out = summed(weights[:, :, :shared], value).view(pairs, -1, size)
        weights = weights[:, :, shared:].reshape(pairs, -1, own)
        if FIXED:  # what is shared is a whole number of KEYS
            for start in range(0, own, KEYS):
                out.add_(tile(weights, v, start)[:, :each])
        else:
            out = torch.baddbmm(out, weights, v)
    if tokens > 1:
        out = out.view(kv_heads, tokens, -1).transpose(0, 1)
    return out.reshape(tokens, -1)


def stretch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_heads: int, slots: Tensor, first: int, last: int, hidden: Tensor,
) -> Tensor:
    # q [T, H, D] of one row: [T, H D]. A block of queries at a time meets the keys that its last one sees; `hidden`
    # [BLOCK, 1, BLOCK] is what is added to scores of the newest.
    tokens, size = q.size(0), q.size(2)
    block = -(-tokens // -(-tokens // hidden.size(0)))
    q = q.view(tokens, kv_heads, -1, size).transpose(0, 1)
    group = q.size(2)
    # Few queries are guesses (lanes.QUERIES at most): as exact as a token without, and no two steps have like shapes.
    like = hidden if tokens > 9 else q
    q = quick(q, like).reshape(kv_heads, -1, size)
    k = quick(keys_of(k_cache, slots, first, last).transpose(0, 1), like)
    v = quick(keys_of(v_cache, slots, first, last).transpose(0, 1), like)
    keys = k.size(1)
    k, v = enough(k, 16).transpose(1, 2), enough(v, 16)
    made: List[Tensor] = []
    for start in range(0, tokens, block):
        count = min(block, tokens - start)
        seen = keys - tokens + start + count
        width = k.size(2) if FIXED and seen < 16 else seen
        scores = torch.bmm(enough(q[:, start * group : (start + count) * group], 4), k[:, :, :width])
        if width > seen:
            scores[:, :, seen:] = -float("inf")
        newest = scores[:, : count * group, seen - count : seen]
        newest.view(kv_heads, count, group, count).add_(hidden[:count, :, :count])
        made.append(summed(scores.softmax(-1), v[:, :width])[:, : count * group])
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
    q = q.reshape(pairs, -1, size)
    each = q.size(1)
    scores = torch.bmm(enough(q, 4), k_lanes[:pairs, :keys].transpose(1, 2))
    scores[:, :each].view(rows, kv_heads, most, -1, keys).add_(bias)
    out = summed(scores.softmax(-1).to(v_lanes.dtype), v_lanes[:pairs, :keys])[:, :each].to(q.dtype)
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
    x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, wanted: Tensor, loads: List[Tensor], tensors: List[Tensor],
    bunches: List[int], stretches: List[int], first: int,
    packed: List[__torch__.torch.classes.quantized.LinearPackedParamsBase], sums: List[Tensor],
    biases: List[Tensor], head_norms: List[Tensor], k_caches: List[Tensor], v_caches: List[Tensor], layers: int,
    eps: Tensor, part: float, head_eps: Tensor, lift: Tensor, far: Tensor, near: Tensor,
    heads: int, kv_heads: int, levels: int, inverse: Tensor, centre: Tensor, biased: bool, hidden: Tensor,
) -> Tensor:
    # x [T, E], written over: the hidden states before the last norm, those of `wanted` tokens at least. The layers
    # given begin with number `first` of `layers`. `eps` and `part` make that a norm lifts what it gives, too.
    tokens = x.size(0)
    both = heads + kv_heads
    for i in range(len(k_caches)):
        k_cache, v_cache = k_caches[i], v_caches[i]
        y = product(x, shrink(x, eps, part), packed[4 * i], sums[4 * i], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i])
        y = y.view(tokens, both + kv_heads, -1)
        qk, v = y[:, :both], y[:, both:]
        if len(head_norms) > 0:
            qk = qk * shrink(qk, head_eps, 1.0 / cos.size(-1)) * head_norms[i]
        qk = rotated(qk, cos, sin)
        k_cache.index_copy_(0, slots, qk[:, heads:])
        v_cache.index_copy_(0, slots, v)
        few = first + i == layers - 1 and wanted.size(0) < tokens
        if few and wanted.size(0) == 0 and len(loads) == 0:  # lanes take their keys while they are attended to
            return x
        y = attend(
            qk[:, :heads], k_cache, v_cache, kv_heads, first + i, loads, tensors, bunches, stretches, hidden
        )
        rest = x
        if few:
            rest, y = x.index_select(0, wanted), y.index_select(0, wanted)
            if wanted.size(0) == 0:
                return x
        y = product(y, lift, packed[4 * i + 1], sums[4 * i + 1], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i + 1])
        rest.add_(y)
        y = product(rest, shrink(rest, eps, part), packed[4 * i + 2], sums[4 * i + 2], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i + 2])
        y = product(turn(gated(y), far, near), lift, packed[4 * i + 3], sums[4 * i + 3], levels, inverse, centre)
        if biased:
            y.add_(biases[4 * i + 3])
        rest.add_(y)
        if few:
            x.index_copy_(0, wanted, rest)
    return x
"""


def program(fixed: bool) -> torch.jit.CompilationUnit:
    """The functions above, `step` among them."""
    names = {"FIXED": fixed, "SERIAL": SERIAL, "KEYS": KEYS}
    return torch.jit.CompilationUnit(re.sub("|".join(names), lambda found: str(names[found[0]]), SOURCE))


def hidden(dtype: torch.dtype) -> Tensor:
    """[BLOCK, 1, BLOCK]: what is added to scores of the newest keys, -inf where a query does not see them."""
    return torch.full((BLOCK, BLOCK), float("-inf"), device="cpu").triu(1).unsqueeze(1).to(dtype)
