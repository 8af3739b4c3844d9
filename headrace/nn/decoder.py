"""The decoder that every architecture here is a variation of: embedding, blocks, norm, output head."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from headrace.kernels.matmul import linear
from headrace.nn.attention import Attention
from headrace.nn.embed import Embedding
from headrace.nn.linear import Linear
from headrace.nn.mlp import MLP
from headrace.nn.norm import RMSNorm
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape
from headrace.nn.step import Step


class Block(nn.Module):
    """A pre-norm layer.

    Takes and returns (x, residual). Their sum is the hidden state; adding them up is left to the next norm,
    which does both in one pass.
    """

    def __init__(self, shape: Shape, index: int, window: int | None, rope: Rope):
        super().__init__()
        self.self_attn = Attention(shape, index, window, rope)
        self.mlp = MLP(shape.hidden, shape.intermediate, shape.act, shape.mlp_bias)
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps, shape.norm_offset)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps, shape.norm_offset)

    @property
    def attention(self) -> Attention:
        """The attention layer, whatever its name in checkpoints."""
        return self.self_attn

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        """residual None stands for zero, before the first block."""
        x_TE, residual_TE = self.self_attn.normed(self.input_layernorm, x_TE, residual_TE, step)
        return self.mlp.normed(self.post_attention_layernorm, x_TE, residual_TE)


class PostNormBlock(Block):
    """A layer that norms what attention and the MLP give, too (Gemma 2 report, section 2)."""

    def __init__(self, shape: Shape, index: int, window: int | None, rope: Rope):
        super().__init__(shape, index, window, rope)
        self.pre_feedforward_layernorm = RMSNorm(shape.hidden, shape.eps, shape.norm_offset)
        self.post_feedforward_layernorm = RMSNorm(shape.hidden, shape.eps, shape.norm_offset)

    def forward(self, x_TE: Tensor, residual_TE: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
        """As Block.forward."""
        x_TE, residual_TE = self.input_layernorm.add(x_TE, residual_TE)
        x_TE = self.post_attention_layernorm(self.self_attn(x_TE, step))
        x_TE, residual_TE = self.pre_feedforward_layernorm.add(x_TE, residual_TE)
        return self.post_feedforward_layernorm(self.mlp(x_TE)), residual_TE


class Decoder(nn.Module):
    """Token ids to hidden states to logits.

    layers   one (window, rope) per block; ropes may be shared
    rename   prefix of a parameter's name here -> its prefix in a Hugging Face checkpoint

    May be built on the meta device: `to_empty(device=...)`, fill the parameters (see `sources`), run.
    """

    def __init__(self, shape: Shape, layers: Sequence[tuple[int | None, Rope]], rename: Mapping[str, str]):
        super().__init__()
        self.shape = shape
        self.rename = dict(rename)
        kind = PostNormBlock if shape.post_norms else Block
        self.embed_tokens = Embedding(shape.vocab, shape.hidden, shape.embed_scale)
        self.blocks = nn.ModuleList(kind(shape, i, window, rope) for i, (window, rope) in enumerate(layers))
        self.norm = RMSNorm(shape.hidden, shape.eps, shape.norm_offset)
        # None when tied: one parameter under two names would come apart on the way from meta to a device.
        self.lm_head = None if shape.tied else Linear(shape.hidden, shape.vocab, split="out")

    @property
    def attentions(self) -> list[Attention]:
        """The attention layers in order."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    def forward(self, step: Step) -> Tensor:
        """[T, hidden] in the weights' dtype, after the last norm."""
        x_TE, residual_TE = self.embed_tokens(step.ids), None
        for block in self.blocks:
            x_TE, residual_TE = block(x_TE, residual_TE, step)
        return self.norm.add(x_TE, residual_TE)[0]

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """[S, hidden] to [S, vocab] float32, soft-capped where the architecture says so."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        logits_SV = linear(hidden_SE, head.weight, out_dtype=torch.float32)
        if (cap := self.shape.logits_softcap) is None:
            return logits_SV
        return torch.tanh(logits_SV / cap) * cap

    def tables(self, device: torch.device | str) -> None:
        """Compute on `device` what is in no checkpoint: the rope tables.

        Moving the model with `to` or `to_empty` does so by itself; this is for a model built on the meta
        device whose parameters were assigned instead.
        """
        for module in self.modules():
            if isinstance(module, Rope):
                module.place(device)

    def allocate(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Give a model built on the meta device its memory: weights uninitialized, rope tables computed.

        What `to` and `to_empty` would do, without the second of imports that meta tensors cost there.
        """
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                memory = torch.empty(parameter.shape, dtype=dtype, device=device)
                setattr(module, name, nn.Parameter(memory, requires_grad=False))
        self.tables(device)

    def sources(self) -> Iterator[tuple[str, Tensor]]:
        """(name in a Hugging Face checkpoint, the tensor or rows of one to fill from it) for all weights."""
        for path, module in self.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if not (isinstance(module, Linear) and module.fused):
                    yield self._renamed(f"{path}.{own}"), parameter.data
                    continue
                parent = path.rpartition(".")[0]
                ends = [sum(module.outputs[:i]) for i in range(len(module.outputs) + 1)]
                for name, (start, stop) in zip(module.fused, pairwise(ends), strict=True):
                    yield self._renamed(f"{parent}.{name}.{own}"), parameter.data[start:stop]

    def _renamed(self, name: str) -> str:
        for ours, theirs in self.rename.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name
