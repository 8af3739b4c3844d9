"""Cases of linear layers, with what the engine computes in the same call, from one token to thousands."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from headrace.bench.kernels_case import Case, Launch, Layer, Sizes, Way, draw, error
from headrace.kernels import configs
from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.choices import Blas, Gemv, Ring, Skinny, Wide
from headrace.kernels.gpu import matmul as gpu
from headrace.kernels.norm import rms_norm_ref

KERNELS = ("linear",)
TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 8192)
HEAD_TOKENS = 512
"""Only rows that sample need the head, so it never sees many tokens."""
EPS = 1e-6

Config = Gemv | Skinny | Ring | Wide | Blas | None
"""None is the library as it chooses."""


def cases(sizes: Sizes, way: Way) -> Iterator[Case]:
    """All layers of a model."""
    for layer in sizes.layers:
        for tokens in TOKENS:
            if layer.name != "head" or tokens <= HEAD_TOKENS:
                make = partial(product, layer, tokens, way.fixed)
                operations = 2.0 * tokens * layer.rows * layer.k
                yield Case("linear", f"{layer.name} {tokens}", moved(layer, tokens), make, operations)


def moved(layer: Layer, tokens: int) -> int:
    """Bytes: the weight, the input and the output once; the sum with the residual read and written."""
    extra = 2 * layer.k * 2 if layer.normed else 0
    return layer.bytes + tokens * (2 * layer.k + extra + layer.n * wide(layer).itemsize)


def wide(layer: Layer) -> torch.dtype:
    """The head gives logits, which are float32."""
    return torch.float32 if layer.name == "head" else torch.bfloat16


def weights(layer: Layer, copies: int, device: torch.device) -> list[Tensor]:
    """Copies of one weight, scaled so that sums stay near one."""
    return [draw(layer.rows, layer.k, device=device) / layer.k**0.5 for _ in range(copies)]


def fusion(layer: Layer, tokens: int, device: torch.device) -> gpu.Fusion:
    """Residual and norm before it where the layer follows a norm, silu(gate) * up after it."""
    if not layer.normed:
        return gpu.Fusion(gated=layer.gated)
    residual = draw(tokens, layer.k, device=device)
    return gpu.Fusion(gain=draw(layer.k, device=device), eps=EPS, before=residual, gated=layer.gated)


def definition(x: Tensor, weight: Tensor, around: gpu.Fusion) -> tuple[Tensor, Tensor]:
    """product() in float32; the sum with the residual is rounded as it is kept."""
    total = x if around.before is None else x + around.before
    out = total.float()
    out = out if around.gain is None else rms_norm_ref(out, around.gain, around.eps, around.offset)
    out = functional.linear(out, weight.float(), None if around.bias is None else around.bias.float())
    return silu_mul_ref(out) if around.gated else out, total


def product(layer: Layer, tokens: int, fixed: bool, copies: int, device: torch.device) -> Launch:
    """What the tables choose, and cuBLAS with the rest in launches of its own."""
    copied, around = weights(layer, copies, device), fusion(layer, tokens, device)
    x, pdl = draw(tokens, layer.k, device=device), configs.pdl(device)

    def ours(weight: Tensor) -> tuple[Tensor, Tensor]:
        return gpu.product(x, weight, around, wide(layer), fixed)

    def library(weight: Tensor) -> Tensor:
        normed, _, rest = gpu.normed_first(x, around, pdl)
        return gpu.library(normed, weight, rest, wide(layer), pdl)

    def check() -> float:
        return max(map(error, ours(copied[0]), definition(x, copied[0], around)))

    return Launch([partial(ours, w) for w in copied], check, [partial(library, w) for w in copied])


# -- one configuration ------------------------------------------------------------------------------------------


def multiply(
    x: Tensor, weight: Tensor, config: Config, around: gpu.Fusion, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(out, x + before), a norm inside where one token is multiplied, else in a launch before."""
    pdl = configs.pdl(x.device)
    if isinstance(config, Gemv):
        return gpu.gemv(x, weight, config, around, dtype, pdl)
    x, total, around = gpu.normed_first(x, around, pdl)
    return gpu.multiply_by(config, x, weight, around, dtype, pdl), total


def trial(layer: Layer, tokens: int, config: Config, copies: int, device: torch.device) -> Launch:
    """One kernel by itself: of one token with the norm inside, else with the norm left out."""
    around = fusion(layer, tokens, device) if isinstance(config, Gemv) else gpu.Fusion(gated=layer.gated)
    x, copied = draw(tokens, layer.k, device=device), weights(layer, copies, device)
    return Launch([partial(multiply, x, w, config, around, wide(layer)) for w in copied], lambda: 0.0)
