"""Where the inputs of a linear layer are made: channels can be divided there and multiplied where they are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.nn.attention import Attention
from headrace.nn.decoder import Block, PostNormBlock
from headrace.nn.linear import Linear
from headrace.nn.norm import RMSNorm


@dataclass(frozen=True)
class Seam:
    """A linear layer (K columns) and what makes its inputs (C channels; C < K where heads share a value head).

    layer       the one that reads
    channel_K   the channel that each column reads
    inner       channels come out of another linear layer, and not out of a norm
    divide      divides what is made, channel by channel, by a tensor [C]
    """

    layer: Linear
    channel_K: Tensor
    inner: bool
    divide: Callable[[Tensor], None]

    def most(self, value_K: Tensor) -> Tensor:
        """Of the columns that read a channel, the largest value: [C]."""
        return self._reduced(value_K, "amax")

    def mean(self, value_K: Tensor) -> Tensor:
        """Of the columns that read a channel, the mean value: [C]."""
        return self._reduced(value_K, "mean")

    def _reduced(self, value_K: Tensor, how: str) -> Tensor:
        # On a CPU: a GPU adds up in whichever order its threads come.
        out = torch.zeros(int(self.channel_K.max()) + 1, dtype=value_K.dtype, device="cpu")
        out.scatter_reduce_(0, self.channel_K, value_K.cpu(), how, include_self=False)
        return out.to(value_K.device)

    def columns(self, scale_C: Tensor) -> Tensor:
        """The scale of each column: [K]."""
        return scale_C[self.channel_K.to(scale_C.device)]

    def move(self, scale_C: Tensor) -> None:
        """Divide channels by their scales and multiply the columns that read them: the product stays as it was."""
        weight = self.layer.weight.data
        weight.copy_(weight.float() * self.columns(scale_C).to(weight.device))
        self.divide(scale_C.to(weight.device))


def seams(block: Block) -> Iterator[Seam]:
    """The four of a block: norm and qkv, v and o, norm and gate_up, up and down."""
    attention, mlp = block.self_attn, block.mlp
    before_mlp = (
        block.pre_feedforward_layernorm
        if isinstance(block, PostNormBlock)
        else block.post_attention_layernorm
    )
    qkv, both, down = attention.qkv_proj, mlp.gate_up_proj, mlp.down_proj
    yield Seam(qkv, _each(qkv), False, partial(_divide_norm, block.input_layernorm))
    yield Seam(attention.o_proj, _value_channels(attention), True, partial(_divide_rows, qkv))
    yield Seam(both, _each(both), False, partial(_divide_norm, before_mlp))
    yield Seam(down, _each(down), True, partial(_divide_rows, both))


def _each(layer: Linear) -> Tensor:
    """Every column a channel of its own."""
    return torch.arange(layer.inputs, device="cpu")


def _value_channels(attention: Attention) -> Tensor:
    """The row of v that each column of o_proj reads: query heads of a group share a value head."""
    rows = torch.arange(attention.kv_heads * attention.head_dim, device="cpu")
    per_head = rows.view(attention.kv_heads, attention.head_dim)
    return per_head.repeat_interleave(attention.heads // attention.kv_heads, dim=0).flatten()


def _divide_norm(norm: RMSNorm, scale_C: Tensor) -> None:
    """A norm multiplies by weight + offset."""
    weight = norm.weight.data
    weight.copy_((weight.float() + norm.offset) / scale_C - norm.offset)


def _divide_rows(layer: Linear, scale_C: Tensor) -> None:
    """The last C rows of a layer, bias included: v of qkv, up of gate_up."""
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            rows = tensor.data[-len(scale_C) :]
            rows.copy_(rows.float() / scale_C.view(-1, *[1] * (rows.dim() - 1)))
