"""Cases of what works row by row: norms, activations, embedding, rotation with the KV store, drawing of tokens."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from headrace.bench.kernels_case import Case, Launch, Sizes, Way, draw, error
from headrace.kernels import configs, sample
from headrace.kernels.activation import silu_mul_ref
from headrace.kernels.embed import embed_ref
from headrace.kernels.gpu import sample as draws
from headrace.kernels.gpu.activation import gated
from headrace.kernels.gpu.embed import gather
from headrace.kernels.gpu.norm import normalize
from headrace.kernels.gpu.rotate import rotate_store
from headrace.kernels.norm import rms_norm_ref
from headrace.kernels.rotate import rotate_store_ref

KERNELS = ("norm", "silu", "embed", "rotate", "sample")
TOKENS = (1, 32, 256, 8192)
DRAWN = (1, 32, 256)
POSITIONS = 4096
BLOCK = 16
CHECKED_ROWS = 64


def cases(sizes: Sizes, way: Way) -> Iterator[Case]:
    """All of this file for a model."""
    for tokens in TOKENS:
        name, row = f"{tokens} tokens", 2 * tokens * sizes.hidden
        yield Case("norm", name, 4 * row, partial(norm, tokens, sizes.hidden))
        yield Case("silu", name, 6 * tokens * sizes.inner, partial(silu, tokens, sizes.inner))
        yield Case("embed", name, 2 * row, partial(embed, tokens, sizes), bound=0.0)
        yield Case("rotate", name, rotated_bytes(tokens, sizes, way), partial(rotate, tokens, sizes, way))
    for rows in DRAWN:
        for name, how in DRAWS.items():
            make = partial(drawn, rows, sizes.vocab, how)
            yield Case("sample", f"{name} {rows} rows", 4 * rows * sizes.vocab, make, bound=0.02)


def norm(tokens: int, size: int, copies: int, device: torch.device) -> Launch:
    """Residual and norm."""
    inputs = [tuple(draw(tokens, size, device=device) for _ in "xr") for _ in range(copies)]
    weight, pdl = draw(size, device=device), configs.pdl(device)

    def ours(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(x, residual, weight, 1e-6, 0.0, pdl)

    def torchs(x: Tensor, residual: Tensor) -> Tensor:
        return functional.rms_norm(x + residual, (size,), weight, 1e-6)

    def check() -> float:
        normed, total = ours(*inputs[0])
        wanted = sum(inputs[0])
        assert isinstance(wanted, Tensor)
        return max(error(normed, rms_norm_ref(wanted.float(), weight, 1e-6)), error(total, wanted))

    return Launch(
        [partial(ours, *pair) for pair in inputs], check, [partial(torchs, *pair) for pair in inputs]
    )


def silu(tokens: int, size: int, copies: int, device: torch.device) -> Launch:
    """The gated activation by itself."""
    inputs = [3 * draw(tokens, 2 * size, device=device) for _ in range(copies)]
    pdl = configs.pdl(device)
    return Launch(
        [partial(gated, x, "silu", pdl) for x in inputs],
        lambda: error(gated(inputs[0], "silu", pdl), silu_mul_ref(inputs[0].float())),
        [partial(silu_mul_ref, x) for x in inputs],
    )


def embed(tokens: int, sizes: Sizes, copies: int, device: torch.device) -> Launch:
    """Rows of the embedding: other ids each time."""
    table = draw(sizes.vocab, sizes.hidden, device=device)
    ids = [torch.randint(0, sizes.vocab, (tokens,), device=device) for _ in range(copies)]
    pdl = configs.pdl(device)
    return Launch(
        [partial(gather, x, table, 1.0, pdl) for x in ids],
        lambda: error(gather(ids[0], table, 2.0, pdl), embed_ref(ids[0], table, 2.0)),
        [partial(functional.embedding, x, table) for x in ids],
    )


def rotated_bytes(tokens: int, sizes: Sizes, way: Way) -> int:
    """q read and written, k and v read and stored."""
    heads = 4 * sizes.heads + 2 * sizes.kv_heads * (2 + way.kv.itemsize)
    return tokens * heads * sizes.head_dim


def rotate(tokens: int, sizes: Sizes, way: Way, copies: int, device: torch.device) -> Launch:
    """QK-norm where the model has one, RoPE, KV store."""
    heads, kv, size = sizes.heads, sizes.kv_heads, sizes.head_dim
    angle = torch.rand(POSITIONS, size // 2, device=device) * 7
    gain = draw(size, device=device) if sizes.qk_norm else None
    positions = torch.randint(0, POSITIONS, (tokens,), device=device)
    table, pdl = torch.cat([angle.cos(), angle.sin()], -1), configs.pdl(device)
    blocks = tokens // BLOCK + 2
    slots = torch.randperm(blocks * BLOCK, device=device)[:tokens]

    def caches(dtype: torch.dtype) -> list[Tensor]:
        return [torch.zeros(blocks, BLOCK, kv, size, device=device).to(dtype) for _ in "kv"]

    def launch(qkv: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        q, k, v = qkv.split([heads, kv, kv], 1)
        return rotate_store(q, k, v, positions, table, gain, gain, 1e-6, 0.0, k_cache, v_cache, slots, pdl,
                            fixed=way.fixed)  # fmt: skip

    inputs = [draw(tokens, heads + 2 * kv, size, device=device) for _ in range(copies)]
    kept = [caches(way.kv) for _ in inputs]

    def check() -> float:
        q, k, v = inputs[0].split([heads, kv, kv], 1)
        k_cache, v_cache = wanted = caches(torch.bfloat16)
        q_wanted = rotate_store_ref(q, k, v, positions, table, gain, gain, 1e-6, 0.0, k_cache, v_cache, slots)
        q_got = launch(inputs[0], *kept[0])
        rounding = 0.1 if way.kv.itemsize == 1 else 1.0  # 8 bits leave about 2.6%
        stored = (error(a.float(), b.float()) * rounding for a, b in zip(kept[0], wanted, strict=True))
        return max(error(q_got, q_wanted), *stored)

    return Launch([partial(launch, qkv, *pair) for qkv, pair in zip(inputs, kept, strict=True)], check)


class Draw(NamedTuple):
    """One way to draw: temperature, and which cuts."""

    scale: float
    top_k: int = 0
    top_p: float = 1.0

    def settings(self, rows: int, device: torch.device) -> sample.Settings:
        """The same for all rows but for their seeds and positions."""
        numbers = torch.arange(rows, device=device)
        some = torch.full((rows,), self.scale, device=device)
        return sample.Settings(
            some, torch.full_like(some, float("inf")), torch.full_like(numbers, self.top_k),
            torch.full_like(some, self.top_p), numbers, numbers * 7,
        )  # fmt: skip


DRAWS = {"greedy": Draw(0.0), "temperature": Draw(1.25), "top-k and top-p": Draw(1.25, 50, 0.9)}


def drawn(rows: int, vocab: int, how: Draw, copies: int, device: torch.device) -> Launch:
    """Tokens from logits; an error is the share of rows that draw another token than the definition."""
    inputs = [torch.randn(rows, vocab, device=device) for _ in range(copies)]
    kinds = sample.Draws(not how.scale, bool(how.top_k), False)

    def ours(logits: Tensor, settings: sample.Settings) -> Tensor:
        return draws.draw(logits, None if kinds.greedy else settings, kinds)

    def torchs(logits: Tensor) -> Tensor:
        if kinds.greedy:
            return logits.argmax(-1)
        return torch.multinomial(torch.softmax(logits * how.scale, -1), 1)

    def check() -> float:
        logits = torch.randn(CHECKED_ROWS, vocab, device=device) * 3
        settings = how.settings(CHECKED_ROWS, device)
        return float((ours(logits, settings) != sample.draw_ref(logits, settings)).float().mean())

    settings = how.settings(rows, device)
    library = [] if kinds.cuts else [partial(torchs, x) for x in inputs]
    return Launch([partial(ours, x, settings) for x in inputs], check, library)
