"""What happens to q, k and v before attention: optional QK-norm, rotary embedding, store into the cache.

T tokens, H query heads, K kv heads, D head size, P positions in the table, R rotary size (R <= D).
Rotary embedding: Su et al. 2021, eq. 34, in the half-rotated order of Hugging Face checkpoints.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels import configs
from headrace.kernels.launch import on_gpu
from headrace.kernels.norm import rms_norm
from headrace.kernels.paged import movable


def apply_rope(x_THD: Tensor, positions_T: Tensor, table_PR: Tensor) -> Tensor:
    """Rotate the first R of D components; table holds cos (R/2) then sin (R/2) per position, float32."""
    half = table_PR.shape[1] // 2
    cos, sin = table_PR[positions_T].unsqueeze(1).split(half, dim=-1)
    wide = x_THD.float()
    a, b, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x_THD.dtype)


def rotate(
    q_THD: Tensor,
    k_TKD: Tensor,
    positions_T: Tensor,
    table_PR: Tensor | None,
    q_weight_D: Tensor | None = None,
    k_weight_D: Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """QK-norm where weights are given, then RoPE where a table is given."""
    if q_weight_D is not None and k_weight_D is not None:
        q_THD = rms_norm(q_THD, q_weight_D, eps, offset)
        k_TKD = rms_norm(k_TKD, k_weight_D, eps, offset)
    if table_PR is not None:
        q_THD = apply_rope(q_THD, positions_T, table_PR)
        k_TKD = apply_rope(k_TKD, positions_T, table_PR)
    return q_THD, k_TKD


def store_kv(
    k_TKD: Tensor, v_TKD: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor,
    k_scale: float = 1.0, v_scale: float = 1.0,
) -> None:  # fmt: skip
    """Write each token's k and v into slot = block * block_size + offset of [blocks, block_size, K, D].

    An 8-bit cache keeps x / scale, cut to what the type can say.
    """
    for x, cache, scale in ((k_TKD, k_cache, k_scale), (v_TKD, v_cache, v_scale)):
        if cache.dtype == torch.float8_e4m3fn:
            most = torch.finfo(cache.dtype).max
            x = (x.float() * (1 / scale)).clamp_(-most, most)
        cells = movable(cache).view(-1, *cache.shape[2:])
        cells.index_copy_(0, slots_T, movable(x.to(cache.dtype)))


class Turns(NamedTuple):
    """What RoPE multiplies by at a step's positions, float32 [T, 1, R]: cos twice; sin, first with a minus."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions_T: Tensor, table_PR: Tensor) -> "Turns":
        """The rows of a table at positions."""
        cos, sin = table_PR.index_select(0, positions_T).unsqueeze(1).chunk(2, dim=-1)
        return cls(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


def _beside(a_TXD: Tensor, b_TYD: Tensor) -> Tensor | None:
    """Both as one [T, X + Y, D] where they lie next to each other, as projections of one product do; else None."""
    tokens, x, size = a_TXD.shape
    y = b_TYD.shape[1]
    row = (x + y) * size if tokens == 1 else a_TXD.stride(0)  # one row may claim any distance to the next
    same = a_TXD.stride()[1:] == b_TYD.stride()[1:] == (size, 1)
    same = same and (tokens == 1 or a_TXD.stride(0) == b_TYD.stride(0))
    next_to = b_TYD.data_ptr() - a_TXD.data_ptr() == x * size * a_TXD.element_size()
    if not (same and next_to and a_TXD.untyped_storage().data_ptr() == b_TYD.untyped_storage().data_ptr()):
        return None
    return a_TXD.as_strided((tokens, x + y, size), (row, size, 1))


def rotate_store_few(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    turns: Turns,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
) -> Tensor | None:
    """rotate_store without norms in few calls, for a CPU; None where tensors are not laid out for it.

    q and k must lie beside each other and be rotated whole; all in float32.
    """
    both = _beside(q_THD, k_TKD)
    size = q_THD.shape[2]
    plain = (
        q_THD.dtype == k_cache.dtype == torch.float32 and k_cache.is_contiguous() and v_cache.is_contiguous()
    )
    if both is None or not plain or turns.cos.shape[-1] != size:
        return None
    swapped = torch.cat((both[..., size // 2 :], both[..., : size // 2]), -1)
    made = (both * turns.cos).add_(swapped.mul_(turns.sin))
    q, k = made.split((q_THD.shape[1], k_TKD.shape[1]), 1)
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, slots_T, k)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, slots_T, v_TKD)
    return q


def rotate_store_ref(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_T: Tensor, table_PR: Tensor | None,
    q_weight_D: Tensor | None, k_weight_D: Tensor | None, eps: float, offset: float,
    k_cache: Tensor, v_cache: Tensor, slots_T: Tensor, *, k_scale: float = 1.0, v_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """The definition of rotate_store: rotate, then store_kv."""
    q, k = rotate(q_THD, k_TKD, positions_T, table_PR, q_weight_D, k_weight_D, eps, offset)
    store_kv(k, v_TKD, k_cache, v_cache, slots_T, k_scale, v_scale)
    return q


def rotate_store(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_T: Tensor, table_PR: Tensor | None,
    q_weight_D: Tensor | None, k_weight_D: Tensor | None, eps: float, offset: float,
    k_cache: Tensor, v_cache: Tensor, slots_T: Tensor,
    *, k_scale: float = 1.0, v_scale: float = 1.0, deterministic: bool = False,
) -> Tensor:  # fmt: skip
    """Optional QK-norm and RoPE of q and k, then k and v into their slots; returns q, contiguous on a GPU.

    q, k, v may be strided views of one fused projection with a unit last stride. Rows that are padding should
    point their slot into block 0. Scales are those of 8-bit caches. With `deterministic` a token's result does not
    depend on how many others there are.
    """
    given = (q_THD, k_TKD, v_TKD, positions_T, table_PR, q_weight_D, k_weight_D, eps, offset)
    strided = all(t.stride(-1) == 1 for t in (q_THD, k_TKD, v_TKD, k_cache, v_cache))
    if strided and on_gpu(q_THD, k_TKD, v_TKD, q_weight_D, k_weight_D):
        from headrace.kernels.gpu import rotate as gpu

        return gpu.rotate_store(
            *given, k_cache, v_cache, slots_T, configs.pdl(q_THD.device),
            k_scale=k_scale, v_scale=v_scale, fixed=deterministic,
        )  # fmt: skip
    return rotate_store_ref(*given, k_cache, v_cache, slots_T, k_scale=k_scale, v_scale=v_scale)
