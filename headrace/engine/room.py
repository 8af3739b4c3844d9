"""Memory by arithmetic: what weights and a step take, and how much KV cache is left."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.base.config import Config
from headrace.base.errors import Refused
from headrace.base.words import size
from headrace.checkpoint.quantized import check_fits, online, rounded_layers
from headrace.engine.blocks import blocks_for
from headrace.engine.layout import Layout
from headrace.kernels import int8
from headrace.nn.decoder import Decoder
from headrace.quant.scheme import packed_bytes

SHORTEST = 256
"""A length that nobody asked for is not lowered below this many tokens to make a model fit."""


def weight_bytes(model: Decoder, dtype: torch.dtype, quantization: str, path: Path | None = None) -> int:
    """Bytes of a model's weights, rope tables included; those of a quantized checkpoint by its files.

    In int8 they are 8 bits and some per row, the embedding 16 bits. Raises Refused for a layer whose shape does not
    fit the scheme.
    """
    buffers = sum(b.nbytes for b in model.buffers())
    dense = sum(p.numel() for p in model.parameters()) * dtype.itemsize + buffers
    if quantization == "none":
        return dense
    if quantization == "checkpoint":
        files = [] if path is None else path.glob("*.safetensors") if path.is_dir() else [path]
        # An embedding is unpacked whatever it was.
        kept = sum(file.stat().st_size for file in files) + model.embed_tokens.weight.numel() * dtype.itemsize
        return min(dense, kept + buffers)
    if quantization != "int8":
        scheme = online()[quantization]
        for names, layer in rounded_layers(model):
            for name, rows in zip(names, layer.outputs, strict=True):
                check_fits(scheme, name, rows, layer.inputs)
                dense += (
                    packed_bytes(scheme, rows, layer.inputs, dtype) - rows * layer.inputs * dtype.itemsize
                )
        return dense
    table = model.embed_tokens.weight
    matrices = [layer.weight for _, layer in model.linears()] + ([table] if model.lm_head is None else [])
    others = sum(p.numel() for p in model.parameters()) - table.numel()
    others -= sum(layer.weight.numel() for _, layer in model.linears())
    rounded = sum(m.numel() + int8.BYTES_PER_ROW * m.shape[0] for m in matrices)
    return rounded + table.numel() * 2 + others * dtype.itemsize + buffers


def workspace(settings: dict[str, Any], attended: int, tokens: int, rows: int, dtype: torch.dtype) -> int:
    """Bytes that a step's activations, its logits and their sampling take at the most.

    Per token: hidden state, residual, normed copy and block output; q, k, v and attention output; the gate, up
    and product of the feed-forward. Per row: logits in float32 and three working copies of them.
    """
    hidden, inner = int(settings["hidden_size"]), int(settings["intermediate_size"])
    per_token = 4 * hidden + 4 * attended + 3 * inner
    per_row = 4 * int(settings["vocab_size"]) * torch.float32.itemsize
    return tokens * per_token * dtype.itemsize + rows * per_row


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for the KV cache once weights and workspace are paid for."""

    config: Config
    free: int
    allowed: int
    share: float
    weights: int
    work: int
    per_block: int
    most: int | None = None

    def kv_blocks(self, layout: Layout, max_len: int, rows: int, tokens: int) -> tuple[int, int]:
        """(longest request, blocks). Raises Refused with the setting that would fit."""
        block, asked = self.config.memory.block, self.config.memory.kv_blocks
        fit = (self.allowed - self.weights - self.work) // self.per_block
        smallest = blocks_for(layout.groups, min(SHORTEST, max_len), block, tokens)
        if fit < (smallest if asked is None else min(asked, smallest)):
            raise self._too_small(layout, max_len, tokens)
        if asked is not None and asked > fit:
            raise Refused(
                f"memory.kv_blocks {asked} needs {size(asked * self.per_block)}; {size(fit * self.per_block)} is left"
                f" beside the weights",
                param="memory.kv_blocks",
                hint=f"use --memory.kv-blocks {fit} or less",
            )
        one = blocks_for(layout.groups, max_len, block, tokens)
        enough = rows * one if self.most is None else max(one, min(rows * one, self.most))
        blocks = asked if asked is not None else min(fit, enough)
        if one <= blocks:
            return max_len, blocks
        lengths = range(1, max_len + 1)
        longest = bisect_right(lengths, blocks, key=lambda n: blocks_for(layout.groups, n, block, tokens))
        if longest < 2:  # one token of prompt, one of answer
            raise Refused(
                f"memory.kv_blocks {blocks} cannot hold a single request of two tokens",
                param="memory.kv_blocks",
                hint=f"use --memory.kv-blocks {blocks_for(layout.groups, 2, block, tokens)} or more",
            )
        if self.config.model.max_len is not None:
            more = "give more memory with --memory.share" if asked is None else "raise --memory.kv-blocks"
            raise Refused(
                f"one request of model.max_len {max_len} needs {one} KV blocks; {blocks} are there",
                param="model.max_len",
                hint=f"use --max-len {longest} or less, or {more}",
            )
        return longest, blocks

    def _too_small(self, layout: Layout, max_len: int, tokens: int) -> Refused:
        """What would fit: a larger share, with less KV cache where what was asked for is too much for any share."""
        asked, block = self.config.memory.kv_blocks, self.config.memory.block
        shortest = min(SHORTEST, max_len)
        least = blocks_for(layout.groups, shortest, block, tokens)
        wanted = asked or blocks_for(layout.groups, self.config.model.max_len or shortest, block, tokens)
        for blocks in (wanted, least):
            needed = self.weights + self.work + blocks * self.per_block
            if fits := needed <= self.free * 0.98:
                break
        said = (
            f"the model needs {size(needed)} (weights {size(self.weights)}, workspace {size(self.work)}, KV cache"
            f" {size(blocks * self.per_block)}); memory.share {self.share:g} of {size(self.free)} free is"
            f" {size(self.allowed)}"
        )
        hint = "use a smaller model, --dtype bfloat16 where it runs in float32, or a machine with more memory"
        if fits:
            hint = f"use --memory.share {min(0.98, needed / self.free + 0.01):.2f}"
            hint += f" --memory.kv-blocks {blocks}" if blocks < wanted and asked else ""
            hint += f" --max-len {shortest}" if blocks < wanted and self.config.model.max_len else ""
        return Refused(said, param="memory.share", hint=hint)
