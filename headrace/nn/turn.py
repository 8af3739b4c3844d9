"""Turns the axes that hidden states are written in, so that no number of one stands out and 8 bits are enough for all.

Norms commute with a rotation once their weights belong to the layers after them; so embedding and layers are rotated
while they are loaded, and nothing is to be done while the model runs (Ashkboos et al. 2024, QuaRot, stage 1a; here with
a Hadamard matrix of 64 repeated along the diagonal, as few hidden sizes allow one of full size).
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from headrace.kernels.hadamard import hadamard, largest, turned
from headrace.nn.linear import Linear
from headrace.nn.norm import RMSNorm
from headrace.nn.prepacked import Prepacked
from headrace.quant.schemes.int8 import SCHEMES

if TYPE_CHECKING:
    from headrace.nn.decoder import Block, Decoder

SIZE = 64
SMALLEST = 8
"""Axes mixed with each other: a power of two that divides the model's hidden size."""
ROWS = 4096
"""Rows of an embedding that are turned at once."""


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
        """x [hidden, K] with each column turned."""
        size = len(self.matrix)
        return torch.matmul(self.matrix, x.float().view(-1, size, x.shape[1])).view(x.shape)

    def seen(self, weight_NK: Tensor, norm: RMSNorm) -> Tensor:
        """A weight that follows a norm, for turned inputs without the norm's weights."""
        return (
            self.rows(weight_NK.float() * (norm.weight.float() + norm.offset)) if self.active else weight_NK
        )

    def prepack(self, layer: Linear, weight_NK: Tensor) -> None:
        """Prepack a layer by its weight as the checkpoint has it."""
        if layer in self.before:
            weight_NK = self.seen(weight_NK, self.before[layer])
        elif self.active and layer in self.after:
            weight_NK = self.columns(weight_NK)
            if layer.bias is not None:
                layer.bias.data.copy_(self.rows(layer.bias.data))
        layer.prepack(weight_NK, layer in self.turns)

    def head(self) -> Prepacked:
        """A tied head, from the embedding; piece by piece, as it is the largest weight of a small model."""
        table = self.model.embed_tokens.weight.data
        made = [SCHEMES["int8"].pack(self.seen(piece, self.model.norm)) for piece in table.split(ROWS)]
        return Prepacked({name: torch.cat([part[name] for part in made]) for name in made[0]})

    def finish(self) -> None:
        """After all layers: norms multiply by one, and the embedding is turned."""
        if not self.active:
            return
        for norm in {*self.before.values(), self.model.norm}:
            norm.weight.data.fill_(1.0 - norm.offset)
        table = self.model.embed_tokens.weight.data
        for piece in table.split(ROWS):
            piece.copy_(self.rows(piece))
