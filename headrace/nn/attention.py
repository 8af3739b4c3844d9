"""Self-attention as a layer: projections, and what a step must know to run it."""

from torch import Tensor, nn

from headrace.kernels.rotate import rotate
from headrace.nn.linear import Linear
from headrace.nn.norm import RMSNorm
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape
from headrace.nn.step import Step


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023).

    heads, kv_heads, head_dim   H, K, D
    scale, softcap, window      of the scores; softcap and window None where there is none
    q_norm, k_norm, rope        applied to q and k by the step; None where there is none
    group, cache_index          set by the engine: which block table, and which pair of cache tensors
    k_scale, v_scale            what an 8-bit cache is multiplied by
    """

    def __init__(self, shape: Shape, index: int, window: int | None, rope: Rope | None):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.scale = shape.scale
        self.softcap = shape.softcap
        self.window = window
        self.group = 0
        self.cache_index = index
        self.k_scale = self.v_scale = 1.0
        sizes = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim)
        self.qkv_proj = Linear(
            shape.hidden, sizes, shape.qkv_bias, fused=("q_proj", "k_proj", "v_proj"), split="out"
        )
        self.o_proj = Linear(sizes[0], shape.hidden, shape.out_bias, split="in")
        self.q_norm = RMSNorm(self.head_dim, shape.eps, shape.norm_offset) if shape.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, shape.eps, shape.norm_offset) if shape.qk_norm else None
        self.rope = rope

    def forward(self, x_TE: Tensor, step: Step) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        return self.mix(self.qkv_proj(x_TE), step)

    def normed(
        self, norm: RMSNorm, x_TE: Tensor, residual_TE: Tensor | None, step: Step
    ) -> tuple[Tensor, Tensor]:
        """(self(norm(x + residual)), x + residual)."""
        qkv_TX, residual_TE = self.qkv_proj.normed(norm, x_TE, residual_TE)
        return self.mix(qkv_TX, step), residual_TE

    def mix(self, qkv_TX: Tensor, step: Step) -> Tensor:
        """What comes after the first projection: [T, (H + 2K) D] to [T, hidden]."""
        q, k, v = qkv_TX.split(self.qkv_proj.outputs, dim=-1)
        q_THD = q.unflatten(-1, (self.heads, self.head_dim))
        k_TKD = k.unflatten(-1, (self.kv_heads, self.head_dim))
        v_TKD = v.unflatten(-1, (self.kv_heads, self.head_dim))
        return self.o_proj(step.attend(self, q_THD, k_TKD, v_TKD).flatten(1))

    def rotate(self, q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """QK-norm and RoPE as this layer has them: for steps that do not fuse them with the KV store."""
        return rotate(q_THD, k_TKD, positions_T, *self.rotation())

    def rotation(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, float, float]:
        """What `kernels.rotate` asks for after the positions: RoPE's table, the norms' weights, eps and offset."""
        table = None if self.rope is None else self.rope.table
        if self.q_norm is None or self.k_norm is None:
            return table, None, None, 0.0, 0.0
        return table, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.q_norm.offset
