"""Turns the axes that hidden states are written in, so that no number of one stands out and 8 bits are enough for all.

Norms commute with a rotation once their weights belong to the layers after them; so embedding and layers are rotated
while they are loaded, and nothing is to be done while the model runs (Ashkboos et al. 2024, QuaRot, stage 1a; here with
a Hadamard matrix of 64 repeated along the diagonal, as few hidden sizes allow one of full size).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from headrace.kernels.hadamard import hadamard, largest, turned
from headrace.nn.linear import Linear
from headrace.nn.norm import RMSNorm
from headrace.nn.prepacked import Prepacked
from headrace.quant.schemes.int8 import PIECE, TOGETHER

if TYPE_CHECKING:
    from headrace.nn.decoder import Block, Decoder

SIZE = TOGETHER
SMALLEST = 8
"""Axes mixed with each other: a power of two that divides the model's hidden size."""


@dataclass(frozen=True)
class Pending:
    """A weight that is made into something else while it is loaded, and never lies in the model as it was.

    names   in a checkpoint, of what its rows are
    shape   with all rows, read into `dtype` on the CPU
    take    to be called with it; from any thread, and for several at once
    """

    names: list[str]
    shape: tuple[int, ...]
    dtype: torch.dtype
    take: Callable[[Tensor], None]


class Turn:
    """What must be done to the weights of a decoder for its hidden states to be turned.

    Models that norm what a layer gives, and hidden sizes without a power of two, are left as they are.
    """

    def __init__(self, model: "Decoder"):
        size = largest(model.shape.hidden, SIZE)
        self.model = model
        self.active = size >= SMALLEST and not model.shape.post_norms
        self.matrix = hadamard(size)
        self.before: dict[nn.Module, RMSNorm] = {}
        self.after: set[nn.Module] = set()
        self.turns: set[nn.Module] = set()
        for block in cast("list[Block]", list(model.blocks)):
            self.before[block.self_attn.qkv_proj] = block.input_layernorm
            self.before[block.mlp.gate_up_proj] = block.post_attention_layernorm
            self.after |= {block.self_attn.o_proj, block.mlp.down_proj}
            self.turns.add(block.mlp.down_proj)  # what comes from no norm, and has numbers that stand out
        if model.lm_head is not None:
            self.before[model.lm_head] = model.norm

    def rows(self, x: Tensor) -> Tensor:
        """x [..., hidden] with each row turned."""
        return turned(x, self.matrix)

    def columns(self, x: Tensor) -> Tensor:
        """x [hidden, K], or a whole number of SIZE rows of it, with each column turned."""
        size = len(self.matrix)
        return torch.matmul(self.matrix, x.float().view(-1, size, x.shape[1])).view(x.shape)

    def seen(self, weight_NK: Tensor, norm: RMSNorm) -> Tensor:
        """A weight that follows a norm, for turned inputs without the norm's weights."""
        wide = weight_NK.float()
        return self.rows(wide * (norm.weight.float() + norm.offset)) if self.active else wide

    def prepack(self, layer: Linear, weight_NK: Tensor) -> None:
        """Prepack a layer by its weight as the checkpoint has it."""
        made = Tensor.float
        if layer in self.before:
            made = partial(self.seen, norm=self.before[layer])
        elif self.active and layer in self.after:
            made = self.columns
            if layer.bias is not None:
                layer.bias.data.copy_(self.rows(layer.bias.data))
        layer.prepack(weight_NK, layer in self.turns, made)

    def table(self, table_VE: Tensor) -> None:
        """Take the embedding, in place, and make a tied head of it."""
        if self.model.lm_head is None:
            self.model.tied_head = Prepacked.of(table_VE, made=partial(self.seen, norm=self.model.norm))
        if self.active:
            for piece in table_VE.split(max(1, PIECE // table_VE.shape[1])):
                piece.copy_(self.rows(piece))
        self.model.embed_tokens.keep(table_VE, self.model.norm.weight.dtype)

    def finish(self) -> None:
        """After all layers and the embedding: norms multiply by one."""
        for norm in {*self.before.values(), self.model.norm} if self.active else ():
            norm.weight.data.fill_(1.0 - norm.offset)
