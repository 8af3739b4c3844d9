"""What a reader of quantized checkpoints is given, what it gives back, and what several of them do alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.words import dtype_name
from headrace.quant.bits import unpack_bits
from headrace.quant.integers import Integers
from headrace.quant.scheme import Scheme
from headrace.quant.schemes import w4a16, w8a16

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Layer:
    """The tensors of a checkpoint whose names are that of one layer, a dot and a suffix.

    name         as in model.layers.0.mlp.down_proj
    suffixes     all there are
    shape_of     the shape of a tensor of the checkpoint, without reading it
    read_stored  a tensor of the checkpoint in the dtype it has
    """

    name: str
    suffixes: frozenset[str]
    shape_of: Callable[[str], tuple[int, ...]]
    read_stored: Callable[[str], Tensor]

    def shape(self, suffix: str) -> tuple[int, ...]:
        """Without reading."""
        return self.shape_of(f"{self.name}.{suffix}")

    def read(self, suffix: str) -> Tensor:
        """In the dtype it has."""
        return self.read_stored(f"{self.name}.{suffix}")


@dataclass(frozen=True)
class Stored:
    """How a layer's weight [N, K] lies in a checkpoint: which tensors it takes, and how to make them a scheme's."""

    shape: tuple[int, int]
    suffixes: frozenset[str]
    convert: Callable[[], tuple[Scheme, dict[str, Tensor]]]


class Reader(Protocol):
    """One checkpoint's quantization."""

    marks: frozenset[str]
    """Suffixes of tensors that only quantized layers have."""

    def open(self, layer: Layer) -> Stored:
        """How this layer is stored. Raises Refused or BadCheckpoint, naming it, for what is not supported or wrong."""
        ...


def refused(layer: str, what: str) -> Refused:
    """The error for a layer that is stored in a way we do not read."""
    return Refused(
        f"{layer}: {what} is not supported",
        param="quantization_config",
        hint="take the model as it was before quantization, or quantized in another way",
    )


def shape2(layer: Layer, suffix: str) -> tuple[int, int]:
    """The shape of a matrix. Raises BadCheckpoint where it is missing or none."""
    if suffix not in layer.suffixes:
        raise BadCheckpoint(f"{layer.name} lacks {suffix}")
    shape = layer.shape(suffix)
    if len(shape) != 2:
        raise BadCheckpoint(f"{layer.name}.{suffix} has shape {list(shape)}; a matrix was expected")
    return shape[0], shape[1]


def tensor(layer: Layer, suffix: str, dtypes: Sequence[torch.dtype], *shapes: tuple[int, ...]) -> Tensor:
    """A tensor of one of these dtypes and one of these shapes. Raises BadCheckpoint naming it otherwise."""
    if suffix not in layer.suffixes:
        raise BadCheckpoint(f"{layer.name} lacks {suffix}")
    found = layer.read(suffix)
    if found.dtype not in dtypes or (shapes and tuple(found.shape) not in shapes):
        kinds = " or ".join(dtype_name(dtype) for dtype in dtypes)
        sizes = " or ".join(str(list(shape)) for shape in shapes)
        dtype = dtype_name(found.dtype)
        raise BadCheckpoint(
            f"{layer.name}.{suffix} is {dtype} {list(found.shape)}; {kinds} {sizes} was expected"
        )
    return found


def one(layer: Layer, suffix: str) -> Tensor:
    """A single number as float32 [1]."""
    found = tensor(layer, suffix, FLOATS, (1,), ())
    return found.float().reshape(1)


def whole(value: Any, what: str, where: str) -> int:
    """A setting that is a whole number. Raises BadCheckpoint otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not (value == -1 or 1 <= value < 1 << 20):
        raise BadCheckpoint(f"{where}: {what} is {value!r}; a whole number was expected")
    return value


def group_order(layer: Layer, suffix: str, grid: "Grid") -> Tensor | None:
    """The order that puts columns of a group side by side; None where they are so already.

    Raises Refused where groups have other sizes than the grid's.
    """
    if suffix not in layer.suffixes or not grid.group:
        return None
    groups = tensor(layer, suffix, (torch.int32, torch.int64), (grid.columns,)).long()
    usual = torch.arange(grid.columns) // grid.group
    if torch.equal(groups, usual) or bool((groups < 0).all()):
        return None
    order = torch.argsort(groups, stable=True)
    if not torch.equal(groups[order], usual):
        raise refused(layer.name, f"{suffix} with groups of other sizes than {grid.group}")
    return order.int()


@dataclass(frozen=True)
class Grid:
    """Signed integers of a checkpoint: how many bits, columns in a group (0: a whole row), columns in all."""

    bits: int
    group: int
    columns: int

    @property
    def groups(self) -> int:
        """In a row."""
        return self.columns // self.group if self.group else 1

    def assemble(
        self,
        values_NK: Tensor,
        scale_NG: Tensor,
        zero_NG: Tensor | None = None,
        order_K: Tensor | None = None,
    ) -> tuple[Integers, dict[str, Tensor]]:
        """A packed weight from values (int8) in the checkpoint's order of columns. Zero points of zero are left out."""
        packed = {"scale": scale_NG.contiguous()}
        if zero_NG is not None and zero_NG.any():
            packed["zero"] = zero_NG.contiguous()
        if order_K is not None:
            packed["order"] = order_K
            values_NK = values_NK[:, order_K.long()]
        group = 0 if self.groups == 1 else self.group
        # Other numbers of bits than four are held in eight.
        kind = w4a16.Int4 if self.bits == w4a16.BITS else w8a16.Int8
        scheme = kind.of(group, "zero" not in packed)
        return scheme, {**packed, "weight": scheme.store(values_NK.contiguous())}


def grid_of(layer: Layer, bits: int, group: int, columns: int) -> Grid:
    """Groups of -1 are whole rows. Raises Refused for groups that do not divide the columns."""
    group = max(group, 0)
    if group and columns % group:
        raise refused(layer.name, f"{columns} columns in groups of {group}")
    return Grid(bits, group, columns)


def signed(words: Tensor, bits: int, count: int) -> Tensor:
    """Values stored plus half their range, as they are: int8 [..., count]."""
    middle = 1 << bits - 1
    return (unpack_bits(words, bits, count).to(torch.int16) - middle).to(torch.int8)
