"""Rotation: hidden states are written in turned axes, so that no channel stands out of weights or inputs.

Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", stages 1a and 1b (v and o only): what
can be merged into weights, so that nothing is to be done while the model runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headrace.base.errors import Refused
from headrace.checkpoint.load import HEAD, Source
from headrace.nn.decoder import Block, Decoder
from headrace.nn.norm import RMSNorm
from headrace.nn.turn import hadamard
from headrace.optimize.passes import check_ranges

PIECE = 4096
"""Rows that are turned at once: an embedding is the largest tensor there is."""

Make = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Axes:
    """A random rotation of `size` axes: signs, a Hadamard matrix, and for what is no power of two a second matrix.

    size = odd * 2^k: Hadamard of 2^k along each row of [odd, 2^k], and an orthogonal matrix of size odd across them.
    """

    sign: Tensor
    small: Tensor
    across: Tensor

    @classmethod
    def random(cls, size: int, generator: torch.Generator) -> "Axes":
        """By signs from a generator."""
        power = size & -size
        sign = torch.randint(0, 2, (size,), generator=generator, device="cpu").float() * 2 - 1
        odd = size // power
        return cls(sign, hadamard(power), cosines(odd))

    def rows(self, x: Tensor) -> Tensor:
        """x [..., size] with each row turned, float32."""
        pieces = [self._turned(piece) for piece in x.reshape(-1, len(self.sign)).split(PIECE)]
        return torch.cat(pieces).view(x.shape)

    def _turned(self, x_RN: Tensor) -> Tensor:
        device = x_RN.device
        x = (x_RN.float() * self.sign.to(device)).view(-1, len(self.across), len(self.small))
        return (self.across.to(device) @ (x @ self.small.to(device))).flatten(1)


def cosines(size: int) -> Tensor:
    """The orthogonal matrix of the discrete cosine transform [size, size] (Ahmed et al. 1974)."""
    steps = torch.arange(size, dtype=torch.float64, device="cpu")
    matrix = torch.cos(torch.pi / size * steps.view(-1, 1) * (steps + 0.5)) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.float()


@dataclass(frozen=True)
class Rotation:
    """Hidden states, and the values of each head, in turned axes.

    seed    of the random signs
    heads   turn values, too, from v to o
    """

    seed: int = 0
    heads: bool = True

    name: ClassVar[str] = "rotation"

    def __post_init__(self) -> None:
        """Raises Refused for an option out of its range."""
        check_ranges(self, seed=(0, 1 << 63))

    def prepare(self, model: Decoder, source: Source) -> "Turned":
        """What turns the tensors of a checkpoint. `model` may lie on the meta device; only norms are read.

        Raises Refused for models that cannot be turned.
        """
        shape = model.shape
        if shape.post_norms:
            raise Refused(
                "rotation does not fit models that norm what attention and MLP give: "
                "these norms multiply each axis of the sum by a weight of its own, which turned axes do not have",
                param="passes", hint="leave rotation out of the recipe; awq and gptq fit",
            )  # fmt: skip
        return Turned(self, model, source)


class Turned:
    """The tensors of a checkpoint, one by one, as they are in the turned model."""

    def __init__(self, options: Rotation, model: Decoder, source: Source):
        generator = torch.Generator("cpu").manual_seed(options.seed)
        shape = model.shape
        self.hidden = Axes.random(shape.hidden, generator)
        self.value = Axes.random(shape.head_dim, generator) if options.heads else None
        self._names = {module: model.renamed(f"{path}.weight") for path, module in model.named_modules()}
        self._layers = {layer: names for names, layer in model.linears()}
        self._offset = shape.norm_offset
        self._made: dict[str, Make] = {self._names[model.embed_tokens]: self.hidden.rows}
        for block in model.blocks:
            assert isinstance(block, Block)
            self._add(block, source)
        last = self._norm(model.norm, source)
        # A tied head is the embedding under another name: its own from now on, as the norm is folded in.
        self._made[HEAD] = lambda tensor: self._read(tensor, last)

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the checkpoint in the turned model, float32; one that stays as it is comes back itself.

        A tied head is to be asked for as lm_head.weight, with the embedding as the checkpoint has it.
        """
        make = self._made.get(name)
        return tensor if make is None else make(tensor.float())

    def _add(self, block: Block, source: Source) -> None:
        attention, mlp = block.self_attn, block.mlp
        first = self._norm(block.input_layernorm, source)
        second = self._norm(block.post_attention_layernorm, source)
        q, k, v = self._layers[attention.qkv_proj]
        for name in (q, k):
            self._made[f"{name}.weight"] = lambda tensor: self._read(tensor, first)
        self._made[f"{v}.weight"] = lambda tensor: self._values(self._read(tensor, first))
        self._made[f"{v}.bias"] = self._values
        for name in self._layers[mlp.gate_up_proj]:
            self._made[f"{name}.weight"] = lambda tensor: self._read(tensor, second)
        (o,), (down,) = self._layers[attention.o_proj], self._layers[mlp.down_proj]
        self._made[f"{o}.weight"] = lambda tensor: self._written(self._heads(tensor))
        self._made[f"{down}.weight"] = self._written
        self._made[f"{o}.bias"] = self._made[f"{down}.bias"] = self.hidden.rows

    def _norm(self, norm: RMSNorm, source: Source) -> Tensor:
        """What a norm multiplies by, which goes to the layers after it; the norm itself gets ones."""
        name = self._names[norm]
        self._made[name] = lambda tensor: torch.full_like(tensor, 1.0 - self._offset)
        return source.read(name).float() + self._offset

    def _read(self, weight_NK: Tensor, norm_K: Tensor) -> Tensor:
        """A weight whose inputs come from a norm of the hidden state."""
        return self.hidden.rows(weight_NK * norm_K.to(weight_NK.device))

    def _written(self, weight_NK: Tensor) -> Tensor:
        """A weight whose outputs are added to the hidden state."""
        return self.hidden.rows(weight_NK.T).T.contiguous()

    def _values(self, tensor: Tensor) -> Tensor:
        """v's rows, or bias: each head's turned."""
        if self.value is None:
            return tensor
        heads = tensor.unflatten(0, (-1, len(self.value.sign)))
        return self.value.rows(heads.movedim(1, -1)).movedim(-1, 1).flatten(0, 1).contiguous()

    def _heads(self, weight_NK: Tensor) -> Tensor:
        """o's columns: each head's turned."""
        if self.value is None:
            return weight_NK
        return self.value.rows(weight_NK.unflatten(1, (-1, len(self.value.sign)))).flatten(1)


PASS = Rotation
