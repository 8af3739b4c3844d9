"""The decoder that every architecture here is a variation of: embedding, blocks, norm, output head."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from headrace.base.errors import Refused
from headrace.kernels.fixed import place_is_free, whole_rows
from headrace.kernels.launch import TENSOR_CORE_TYPES, on_gpu
from headrace.kernels.matmul import linear
from headrace.nn.attention import Attention
from headrace.nn.embed import Embedding
from headrace.nn.linear import Linear
from headrace.nn.mlp import MLP
from headrace.nn.norm import RMSNorm
from headrace.nn.packed import PackedRows
from headrace.nn.prepacked import Prepacked
from headrace.nn.rope import Rope
from headrace.nn.shape import Shape
from headrace.nn.step import Step
from headrace.nn.turn import Pending, Turn


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
        return self.mlp.normed(self.post_attention_layernorm, x_TE, step.keep(residual_TE))


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
        x_TE, residual_TE = self.pre_feedforward_layernorm.add(x_TE, step.keep(residual_TE))
        return self.post_feedforward_layernorm(self.mlp(x_TE)), residual_TE


class Decoder(nn.Module):
    """Token ids to hidden states to logits.

    layers   one (window, rope) per block; ropes may be shared
    rename   prefix of a parameter's name here -> its prefix in a Hugging Face checkpoint

    May be built on the meta device: `allocate` its memory, fill the parameters (see `sources`), run.
    """

    def __init__(self, shape: Shape, layers: Sequence[tuple[int | None, Rope]], rename: Mapping[str, str]):
        super().__init__()
        self.shape = shape
        self.rename = dict(rename)
        self.deterministic = False
        kind = PostNormBlock if shape.post_norms else Block
        self.embed_tokens = Embedding(shape.vocab, shape.hidden, shape.embed_scale)
        self.blocks = nn.ModuleList(kind(shape, i, window, rope) for i, (window, rope) in enumerate(layers))
        self.norm = RMSNorm(shape.hidden, shape.eps, shape.norm_offset)
        # None when tied: one parameter under two names would come apart on the way from meta to a device.
        self.lm_head = None if shape.tied else Linear(shape.hidden, shape.vocab, split="out")
        self.tied_head: Prepacked | None = (
            None  # a tied head that multiplies in another type than the embedding has
        )

    @property
    def attentions(self) -> list[Attention]:
        """The attention layers in order."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    def forward(self, step: Step) -> Tensor:
        """[T, hidden] in the weights' dtype, after the last norm; of fewer tokens where `step.final` keeps fewer."""
        x_TE, residual_TE = self.embed_tokens(step.ids), None
        last = len(self.blocks) - 1
        for n, block in enumerate(self.blocks):
            x_TE, residual_TE = block(x_TE, residual_TE, step.final if n == last else step)
        return self.norm.add(x_TE, residual_TE)[0]

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """[S, hidden] to [S, vocab] float32, soft-capped where the architecture says so."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        exact = self.deterministic
        if self.tied_head is not None:
            logits_SV = self.tied_head(hidden_SE.float())
        elif isinstance(head, Linear) and head.packed is not None:
            # Kernels for packed weights take 16 bits, of which float16 rounds logits least and holds what a norm gives.
            kernels = hidden_SE.dtype in TENSOR_CORE_TYPES and on_gpu(hidden_SE)
            logits_SV = head(hidden_SE.half() if kernels else hidden_SE.float()).float()
        else:
            logits_SV = linear(hidden_SE, head.weight, out_dtype=torch.float32, deterministic=exact)
        if (cap := self.shape.logits_softcap) is None:
            return logits_SV
        return (whole_rows(torch.tanh, logits_SV / cap) if exact else torch.tanh(logits_SV / cap)) * cap

    def set_deterministic(self, on: bool = True) -> None:
        """From now on a token's logits are the same bits whatever shares its step; back ends have a flag of their own.

        The weights must be there. Raises Refused where this machine's matrix products do not allow it. Or, with `on`
        False, no more.
        """
        self.deterministic = on
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        prepacked = [module for module in self.modules() if isinstance(module, Prepacked)]
        if on and any(isinstance(module.packed, PackedRows) for module in linears):
            raise Refused(
                "products with quantized weights give a row other bits in other company",
                param="schedule.deterministic",
                hint="leave it out, or take the model as it was before quantization",
            )
        for module in (*linears, *prepacked):
            module.deterministic = on
        if not on:
            return
        plain = (*(m for m in linears if m.packed is None), *(() if self.tied_head else (head,)))
        weights = {m.weight.shape: m.weight for m in plain if not m.weight.is_cuda and m.weight.numel()}
        whole = {m.weight.shape: m for m in prepacked}
        if not (all(map(place_is_free, weights.values())) and all(m.place_is_free() for m in whole.values())):
            raise Refused(
                "matrix products of this machine give a row other bits in other company",
                param="schedule.deterministic",
                hint="leave it out, or use another dtype or device",
            )

    def tables(self, device: torch.device | str) -> None:
        """Compute on `device` what is in no checkpoint: the rope tables.

        Moving the model with `to` or `to_empty` does so by itself; this is for a model built on the meta
        device whose parameters were assigned instead.
        """
        for module in self.modules():
            if isinstance(module, Rope):
                module.place(device)

    def allocate(self, dtype: torch.dtype, device: torch.device | str, prepacks: bool = False) -> None:
        """Give a model built on the meta device its memory: weights uninitialized, rope tables computed.

        What `to` and `to_empty` would do, without the second of imports that meta tensors cost there. With `prepacks`
        linear layers and the embedding get none: see `pending`.
        """
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if prepacks and name == "weight" and isinstance(module, Linear | Embedding):
                    continue
                memory = torch.empty(parameter.shape, dtype=dtype, device=device)
                setattr(module, name, nn.Parameter(memory, requires_grad=False))
        self.tables(device)

    def pending(self) -> Iterator[Pending]:
        """The weights that `allocate` left out: the embedding, in 16 bits, as it takes longest; layers to be prepacked.

        All else must be there by then: norms are folded in. `prepack` is to follow.
        """
        turn, table = Turn(self), self.embed_tokens.weight
        if table.is_meta:
            names = [self.renamed("embed_tokens.weight")]
            yield Pending(names, tuple(table.shape), torch.float16, turn.table)
        for names, layer in self.linears():
            if layer.weight.is_meta:
                names, shape = [f"{name}.weight" for name in names], tuple(layer.weight.shape)
                yield Pending(names, shape, layer.weight.dtype, partial(turn.prepack, layer))

    def prepack(self) -> None:
        """Multiply 8-bit integers on a CPU from now on: whatever was not `pending` before, and what is left to do."""
        turn = Turn(self)
        for _, layer in self.linears():
            if layer.packed is None:
                turn.prepack(layer, layer.weight.data)
        if self.embed_tokens.dtype is None:
            turn.table(self.embed_tokens.weight.data.to(torch.float16))
        turn.finish()

    def sources(self) -> Iterator[tuple[str, Tensor]]:
        """(name in a Hugging Face checkpoint, the tensor or rows of one to fill from it) for all weights.

        Without those of quantized layers, which are filled as wholes: see `linears`.
        """
        for path, module in self.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if own == "weight" and isinstance(module, Linear) and module.packed is not None:
                    continue
                if not (isinstance(module, Linear) and module.fused):
                    yield self.renamed(f"{path}.{own}"), parameter.data
                    continue
                parent = path.rpartition(".")[0]
                ends = [sum(module.outputs[:i]) for i in range(len(module.outputs) + 1)]
                for name, (start, stop) in zip(module.fused, pairwise(ends), strict=True):
                    yield self.renamed(f"{parent}.{name}.{own}"), parameter.data[start:stop]

    def linears(self) -> Iterator[tuple[list[str], Linear]]:
        """(names in a Hugging Face checkpoint of what its rows are, layer) of every linear layer, in order."""
        for path, module in self.named_modules():
            if isinstance(module, Linear):
                parent = path.rpartition(".")[0]
                names = [f"{parent}.{name}" for name in module.fused] if module.fused else [path]
                yield [self.renamed(name) for name in names], module

    def named_attentions(self) -> Iterator[tuple[str, Attention]]:
        """(name in a Hugging Face checkpoint, layer) of every attention layer, in order."""
        for path, module in self.named_modules():
            if isinstance(module, Attention):
                yield self.renamed(path), module

    def renamed(self, name: str) -> str:
        """What a parameter or module is called in a Hugging Face checkpoint."""
        for ours, theirs in self.rename.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name
