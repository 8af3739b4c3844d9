"""One linear layer: collects its inputs, rounds its projections, and puts the rounded numbers into its weight.

S sampled rows of inputs, N rows and K columns of a weight.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint
from headrace.nn.decoder import Block
from headrace.nn.linear import Linear
from headrace.nn.step import Whole
from headrace.optimize.inputs import Collector, Inputs, Need
from headrace.optimize.outcome import Layer
from headrace.optimize.pieces import stacked
from headrace.optimize.recipe import Assigned
from headrace.optimize.watch import Enough, Part, Rounded, run, watching
from headrace.quant.eight import EightBits
from headrace.quant.export import written
from headrace.quant.integers import Integers
from headrace.quant.scheme import Packed, Scheme, join, part

ROWS = 128
"""Pieces of a weight are whole numbers of so many rows, which all schemes can be cut at."""
ELEMENTS = 1 << 19
Tick = Callable[[], None]


def collect(
    block: Block,
    rounded: Rounded,
    windows: Iterable[Tensor],
    total: int,
    layers: Mapping[Linear, frozenset[Need]],
    tick: Tick,
) -> dict[Linear, Inputs]:
    """What goes into some layers of a block while it reads windows [T, E], `total` rows in all.

    `tick` is called after each window.
    """
    device = _device(block)
    collectors = {layer: Collector(layer.inputs, total, needs, device) for layer, needs in layers.items()}
    with watching(block, rounded, collectors):
        for x_TE, step in _steps(block, windows):
            with suppress(Enough):
                run(block, x_TE, step)
            tick()
    return {layer: collector.finished() for layer, collector in collectors.items()}


def outputs(block: Block, rounded: Rounded, windows: Iterable[Tensor], tick: Tick) -> Iterator[Tensor]:
    """The hidden states after a block for those before it, window by window."""
    with watching(block, rounded, {}):
        for x_TE, step in _steps(block, windows):
            yield run(block, x_TE, step)
            tick()


def _steps(block: Block, windows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Whole]]:
    step, device = None, _device(block)
    for x_TE in windows:
        step = step or Whole(torch.zeros(len(x_TE), dtype=torch.int64, device=device))
        yield x_TE.to(device), step


def _device(block: Block) -> torch.device:
    return block.input_layernorm.weight.device


@dataclass
class Done:
    """What came of a block: packed weights by name, and what is to be said of each."""

    packed: dict[str, tuple[Scheme, Packed]] = field(default_factory=dict[str, tuple[Scheme, Packed]])
    layers: list[Layer] = field(default_factory=list[Layer])


@torch.no_grad()
def round_layer(
    layer: Linear,
    plan: Mapping[str, Assigned],
    names: Iterable[str],
    inputs: Inputs,
    dtype: torch.dtype,
) -> tuple[Done, list[Part]]:
    """Round the projections of a layer, whose weight then holds the rounded numbers.

    Raises BadCheckpoint for numbers that are not finite.
    """
    done, parts, start = Done(), [], 0
    for name, rows in zip(names, layer.outputs, strict=True):
        weight_NK = layer.weight.data[start : start + rows]
        scheme = plan[name].scheme
        if scheme is not None:
            begun = perf_counter()
            packed = pack(weight_NK, plan[name], inputs, dtype)
            pieces = ((first, weight_NK[first:stop]) for first, stop in _spans(*weight_NK.shape))
            error = output_change(pieces, scheme, packed, inputs.sample_TK)
            unpack_into(weight_NK, scheme, packed)
            done.packed[name] = scheme, packed
            seconds = perf_counter() - begun
            done.layers.append(described(name, plan[name], weight_NK.shape, packed, error, seconds))
            parts.append(Part(scheme, packed, start, start + rows))
        start += rows
    return done, parts


def pack(weight_NK: Tensor, assigned: Assigned, inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """One projection as its pass rounds it; with the inputs' scale where its scheme has one from calibration."""
    scheme = assigned.scheme
    assert scheme is not None
    packed = dict(assigned.rounding.pack(weight_NK, scheme, inputs, dtype))
    if scheme.spec.static:
        assert isinstance(scheme, EightBits)
        packed["input_scale"] = scheme.input_scale(inputs.peak_K)
    return packed


def unpack_into(weight_NK: Tensor, scheme: Scheme, packed: Packed) -> None:
    """Put the numbers that packed rows stand for into a weight, some rows at a time."""
    for start, stop in _spans(*weight_NK.shape):
        weight_NK[start:stop] = scheme.unpack(part(scheme, packed, start, stop, "out"))


def _spans(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Where a weight is cut so that pieces are small."""
    step = max(1, ELEMENTS // (ROWS * columns)) * ROWS
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def output_change(
    pieces: Iterable[tuple[int, Tensor]], scheme: Scheme, packed: Packed, sample_SK: Tensor | None
) -> float:
    """||W'x' - Wx|| / ||Wx|| over a sample, x' being x as the scheme rounds it; without one ||W' - W|| / ||W||.

    pieces   (first row, some rows of the weight as it was), which together are all
    """
    seen_SK = None if sample_SK is None else scheme.seen(packed, sample_SK)
    moved = total = 0.0
    for start, rows in pieces:
        wanted, found = rows, scheme.unpack(part(scheme, packed, start, start + len(rows), "out"))
        if sample_SK is not None and seen_SK is not None:
            wanted, found = sample_SK @ wanted.T, seen_SK @ found.T
        moved += float((found - wanted).square().sum())
        total += float(wanted.square().sum())
    return (moved / total) ** 0.5 if total else 0.0


def described(
    name: str, assigned: Assigned, shape: Iterable[int], packed: Packed, error: float, seconds: float
) -> Layer:
    """What is to be said of a rounded projection, but for what it was in the source.

    Raises BadCheckpoint where the error is no number: weights, or what goes into them, then hold what is none.
    """
    if not isfinite(error):
        raise BadCheckpoint(
            f"{name}: weights, or what goes into them, are not finite",
            hint="the checkpoint may be damaged: get it again",
        )
    rows, columns = shape
    after = sum(tensor.nbytes for tensor in packed.values())
    assert assigned.scheme is not None
    bits = after * 8 / (rows * columns)
    return Layer(name, assigned.scheme.name, assigned.rounding.name, bits, 0, after, error, seconds)


def tensors_of(scheme: Scheme, packed: Packed) -> dict[str, Tensor]:
    """A packed weight as compressed-tensors has it; integers some rows at a time, as they are unpacked on the way."""
    form = written(scheme)
    if not isinstance(scheme, Integers):
        return form.tensors(scheme, packed)
    size = scheme.size(packed)
    parts = [form.tensors(scheme, part(scheme, packed, *span, "out")) for span in _spans(*size)]
    return stacked(parts) | {"weight_shape": torch.tensor(size, dtype=torch.int64, device="cpu")}


def joined(scheme: Scheme, parts: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """Packed pieces of one weight on top of each other; None where its rows do not stand for themselves."""
    if any(scheme.axes[name].rows == 0 for name in parts[0] if name != "input_scale"):
        return None
    return join(scheme, parts)
