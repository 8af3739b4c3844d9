"""Random blocks, and inputs of layers as real ones are: channels that go together, and a few that stand out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headrace import models
from headrace.checkpoint.load import dummy
from headrace.models import gemma, llama, qwen
from headrace.nn.decoder import Block, Decoder
from headrace.nn.linear import Linear
from headrace.nn.step import Whole
from headrace.optimize.inputs import Inputs
from headrace.optimize.passes import rtn
from headrace.quant.scheme import Scheme

TOKENS = 96
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**llama.TINY, "attention_bias": True, "mlp_bias": True},
    "qwen2": qwen.TINY,
    "qwen3": {**qwen.TINY, "model_type": "qwen3"},
    "gemma2": gemma.TINY,
    "gemma3_text": {**gemma.TINY, "model_type": "gemma3_text"},
}


def model(config: dict[str, Any], seed: int = 0) -> Decoder:
    """Random weights; norms that differ from channel to channel."""
    with torch.device("meta"):
        made = models.build(config, 256)
    made.allocate(torch.float32, "cpu")
    dummy(made, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in made.sources():
        if name.endswith("norm.weight"):
            tensor.mul_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.5, generator=generator)
    return made.eval()


def block(config: dict[str, Any], seed: int = 0) -> Block:
    """The second of a random model."""
    found = model(config, seed).blocks[1]
    assert isinstance(found, Block)
    return found


def hidden(size: int, seed: int = 0) -> Tensor:
    """Hidden states [T, size] of which two channels stand out."""
    return correlated(TOKENS, size, seed)


def correlated(rows: int, columns: int, seed: int = 0, stand_out: float = 20.0) -> Tensor:
    """Rows in which channels go together, and two are so many times larger."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, columns // 4, generator=generator) @ torch.randn(
        columns // 4, columns, generator=generator
    )
    x = few / few.std() + 0.3 * torch.randn(rows, columns, generator=generator)
    x[:, [1, columns // 2]] *= stand_out
    return x


def inputs(x_TK: Tensor) -> Inputs:
    """Everything about these rows."""
    return Inputs(len(x_TK), x_TK.square().sum(0), x_TK.abs().amax(0), x_TK.T @ x_TK, x_TK[:512].clone())


@torch.no_grad()
def run(block: Block, x_TE: Tensor) -> Tensor:
    """What a block makes of hidden states."""
    x, residual = block(x_TE, None, Whole(torch.zeros(len(x_TE), dtype=torch.int64)))
    return x + residual


def seen(block: Block, x_TE: Tensor) -> dict[Linear, Inputs]:
    """What goes into each layer of a block."""
    found: dict[Linear, Inputs] = {}

    def watch(layer: Linear) -> Callable[..., None]:
        def hook(_: Linear, args: tuple[Tensor]) -> None:
            found[layer] = inputs(args[0].detach())

        return hook

    hooks = [m.register_forward_pre_hook(watch(m)) for m in block.modules() if isinstance(m, Linear)]
    run(block, x_TE)
    for hook in hooks:
        hook.remove()
    assert len(found) == 4
    return found


def loss(weight_NK: Tensor, rounded_NK: Tensor, x_TK: Tensor) -> float:
    """||(W - Wq) X||."""
    return float((x_TK @ (weight_NK - rounded_NK).T).norm())


def rounded(block: Block, scheme: Scheme, x_TE: Tensor | None = None) -> None:
    """Every layer of a block rounded from now on, its projections one by one: plainly, or by rtn for such inputs."""
    found = None if x_TE is None else seen(block, x_TE)
    for layer in [module for module in block.modules() if isinstance(module, Linear)]:
        parts = layer.weight.data.split(layer.outputs)
        if found is None:
            layer.become([(scheme, scheme.pack(part)) for part in parts])
        else:
            layer.become([(scheme, rtn.PASS().pack(part, scheme, found[layer])) for part in parts])
