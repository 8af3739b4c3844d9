"""QK-norm, rotary embedding and the KV store of a step in one Triton launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from headrace.kernels.launch import power_of_two, warps_for

FP8_MOST = tl.constexpr(448.0)


@triton.jit
def stored(x, inverse, to: tl.constexpr, FP8: tl.constexpr):
    """x as it is kept: divided by the cache's scale and cut to what 8 bits can say, where it has 8."""
    if FP8:
        x = tl.minimum(tl.maximum(x.to(tl.float32) * inverse, -FP8_MOST), FP8_MOST)
    return x.to(to)


@triton.jit
def rotate_heads(
    x_ptr, head_stride, gain_ptr, table_ptr, position, out_ptr, out_stride, heads, first, eps, offset, inverse,
    D: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
    HEADS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Norm and rotate HEADS heads of one token; the halves a and b rotate, the rest [2 HALF, D) does not."""
    head = first + tl.arange(0, HEADS)
    h = tl.arange(0, BLOCK_HALF)
    live = (head < heads)[:, None] & (h < HALF)[None, :]
    row = head[:, None] * head_stride
    a = tl.load(x_ptr + row + h[None, :], mask=live, other=0.0)
    b = tl.load(x_ptr + row + HALF + h[None, :], mask=live, other=0.0)
    kind = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if BLOCK_REST > 0:
        r = 2 * HALF + tl.arange(0, BLOCK_REST)
        rest_live = (head < heads)[:, None] & (r < D)[None, :]
        rest = tl.load(x_ptr + row + r[None, :], mask=rest_live, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(a * a + b * b, 1)
        if BLOCK_REST > 0:
            squares += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / D + eps)[:, None]
        gain_a = tl.load(gain_ptr + h, mask=h < HALF, other=0.0).to(tl.float32) + offset
        gain_b = tl.load(gain_ptr + HALF + h, mask=h < HALF, other=0.0).to(tl.float32) + offset
        a = (a * scale * gain_a[None, :]).to(kind).to(tl.float32)  # rounded here by the definition too
        b = (b * scale * gain_b[None, :]).to(kind).to(tl.float32)
        if BLOCK_REST > 0:
            gain_r = tl.load(gain_ptr + r, mask=r < D, other=0.0).to(tl.float32) + offset
            rest = (rest * scale * gain_r[None, :]).to(kind).to(tl.float32)
    to = out_ptr.dtype.element_ty
    where = out_ptr + head[:, None] * out_stride
    if ROPE:
        cos = tl.load(table_ptr + position * (2 * HALF) + h, mask=h < HALF, other=0.0)[None, :]
        sin = tl.load(table_ptr + position * (2 * HALF) + HALF + h, mask=h < HALF, other=0.0)[None, :]
        a, b = a * cos - b * sin, b * cos + a * sin
    tl.store(where + h[None, :], stored(a.to(kind), inverse, to, FP8), mask=live)
    tl.store(where + HALF + h[None, :], stored(b.to(kind), inverse, to, FP8), mask=live)
    if BLOCK_REST > 0:
        tl.store(where + r[None, :], stored(rest.to(kind), inverse, to, FP8), mask=rest_live)


@triton.jit
def rotate_store_kernel(
    q_ptr, k_ptr, v_ptr, positions_ptr, table_ptr, q_gain_ptr, k_gain_ptr, out_ptr, k_cache_ptr, v_cache_ptr,
    slots_ptr, heads, kv_heads, q_token, q_head, k_token, k_head, v_token, v_head, block_size,
    k_block, k_slot, k_cache_head, v_block, v_slot, v_cache_head, eps, offset, k_inverse, v_inverse,
    D: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, FP8: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (token, group of HEADS heads): the groups of q come first, then those of k, then those of v."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    q_groups = tl.cdiv(heads, HEADS)
    kv_groups = tl.cdiv(kv_heads, HEADS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    position = tl.load(positions_ptr + token).to(tl.int64) if ROPE else token
    if group < q_groups:
        rotate_heads(q_ptr + token * q_token, q_head, q_gain_ptr, table_ptr, position,
                     out_ptr + token * heads * D, D, heads, group * HEADS, eps, offset, 1.0,
                     D, HALF, BLOCK_HALF, BLOCK_REST, HEADS, NORM, ROPE, False)  # fmt: skip
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        block, inside = slot // block_size, slot % block_size
        if group < q_groups + kv_groups:
            rotate_heads(k_ptr + token * k_token, k_head, k_gain_ptr, table_ptr, position,
                         k_cache_ptr + block * k_block + inside * k_slot, k_cache_head, kv_heads,
                         (group - q_groups) * HEADS, eps, offset, k_inverse,
                         D, HALF, BLOCK_HALF, BLOCK_REST, HEADS, NORM, ROPE, FP8)  # fmt: skip
        else:
            head = (group - q_groups - kv_groups) * HEADS + tl.arange(0, HEADS)
            d = tl.arange(0, BLOCK_D)
            live = (head < kv_heads)[:, None] & (d < D)[None, :]
            v = tl.load(v_ptr + token * v_token + head[:, None] * v_head + d[None, :], mask=live, other=0.0)
            where = (
                v_cache_ptr + block * v_block + inside * v_slot + head[:, None] * v_cache_head + d[None, :]
            )
            tl.store(where, stored(v, v_inverse, v_cache_ptr.dtype.element_ty, FP8), mask=live)


def rotate_store(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_T: Tensor, table_PR: Tensor | None,
    q_weight_D: Tensor | None, k_weight_D: Tensor | None, eps: float, offset: float,
    k_cache: Tensor, v_cache: Tensor, slots_T: Tensor, pdl: bool = False,
    *, k_scale: float = 1.0, v_scale: float = 1.0, fixed: bool = False,
) -> Tensor:  # fmt: skip
    """As headrace.kernels.rotate.rotate_store; `fixed` is its `deterministic`."""
    tokens, heads, size = q_THD.shape
    kv_heads = k_TKD.shape[1]
    norm = q_weight_D is not None and k_weight_D is not None
    half = size // 2 if table_PR is None else table_PR.shape[1] // 2
    rest = size - 2 * half
    # Few tokens: one head per program, spread wide. Many: enough bytes per program to keep memory busy.
    # The warps that share a head's norm follow from this, and so does the order of its sum: `fixed` has one.
    many = min(8, power_of_two(max(heads, kv_heads)))
    per_program = 1 if tokens <= 16 and not fixed else many
    groups = triton.cdiv(heads, per_program) + 2 * triton.cdiv(kv_heads, per_program)
    out = torch.empty((tokens, heads, size), dtype=q_THD.dtype, device=q_THD.device)
    if tokens:
        rotate_store_kernel[(tokens, groups)](
            q_THD, k_TKD, v_TKD, positions_T, table_PR,
            q_weight_D if norm else None, k_weight_D if norm else None,
            out, k_cache, v_cache, slots_T, heads, kv_heads,
            *q_THD.stride()[:2], *k_TKD.stride()[:2], *v_TKD.stride()[:2],
            k_cache.shape[1], *k_cache.stride()[:3], *v_cache.stride()[:3], eps, offset, 1 / k_scale, 1 / v_scale,
            D=size, HALF=half, BLOCK_HALF=power_of_two(half), BLOCK_REST=power_of_two(rest) if rest else 0,
            BLOCK_D=power_of_two(size), HEADS=per_program, NORM=norm, ROPE=table_PR is not None,
            FP8=k_cache.dtype == torch.float8_e4m3fn, PDL=pdl,
            num_warps=warps_for(per_program * power_of_two(half), 4), launch_pdl=pdl,
        )  # fmt: skip
    return out
