"""Attention as a layer: what it hands to the step."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.rotate import rotate
from headrace.nn.attention import Attention
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape
from headrace.nn.step import Entire

SHAPE = Shape(
    vocab=9, hidden=12, intermediate=8, layers=1, heads=4, kv_heads=2, head_dim=6,
    eps=1e-6, act="silu", tied=True, scale=0.4, softcap=3.0,
)  # fmt: skip


def made(**changes: Any) -> Attention:
    layer = Attention(replace(SHAPE, **changes), 5, 7, Rope(6, 100.0, None, 16, 16))
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer


class Recorder(Entire):
    ids = positions = torch.arange(3)

    def attend(self, layer: Attention, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        self.seen = (layer, q_THD, k_TKD, v_TKD)
        return q_THD.flip(0)


def test_projections_in_and_out():
    layer, step, x = made(qkv_bias=True), Recorder(), torch.randn(3, 12)
    y = layer(x, step)
    seen, q, k, v = step.seen
    assert seen is layer
    assert (q.shape, k.shape, v.shape) == ((3, 4, 6), (3, 2, 6), (3, 2, 6))
    torch.testing.assert_close(torch.cat([t.flatten(1) for t in (q, k, v)], 1), layer.qkv_proj(x))
    torch.testing.assert_close(y, layer.o_proj(q.flip(0).flatten(1)))


def test_what_a_step_may_ask():
    layer = made()
    assert (layer.heads, layer.kv_heads, layer.head_dim, layer.scale, layer.softcap) == (4, 2, 6, 0.4, 3.0)
    assert (layer.window, layer.group, layer.cache_index) == (7, 0, 5)
    assert layer.q_norm is None


def test_rotate_norms_first_where_there_are_norms():
    q, k, at = torch.randn(3, 4, 6), torch.randn(3, 2, 6), torch.tensor([0, 9, 4])
    plain = made()
    assert plain.rope is not None
    torch.testing.assert_close(plain.rotate(q, k, at), rotate(q, k, at, plain.rope.table))
    normed = made(qk_norm=True, norm_offset=1.0)
    assert normed.q_norm is not None
    assert normed.k_norm is not None
    wanted = rotate(normed.q_norm(q), normed.k_norm(k), at, plain.rope.table)
    torch.testing.assert_close(normed.rotate(q, k, at), wanted)
    normed.rope = None
    torch.testing.assert_close(normed.rotate(q, k, at), (normed.q_norm(q), normed.k_norm(k)))
