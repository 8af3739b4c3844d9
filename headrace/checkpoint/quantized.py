"""Quantized weights on their way into a model: as a checkpoint has them, or rounded while they are read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint, Refused
from headrace.base.json_file import read_json
from headrace.checkpoint.gguf import Gguf
from headrace.checkpoint.source import SafetensorsSource, Source, check_shape
from headrace.checkpoint.source import open_source as source_of
from headrace.nn.linear import Linear
from headrace.quant.export import HEAD
from headrace.quant.formats import reader
from headrace.quant.formats.layer import Layer, Reader, Stored
from headrace.quant.plain import PLAIN
from headrace.quant.scheme import Packed, Scheme
from headrace.quant.schemes import known

if TYPE_CHECKING:
    from headrace.nn.decoder import Decoder


def open_source(path: str | Path | Gguf) -> Source:
    """The weights of a folder, a .safetensors or a .gguf file, whichever way they are quantized.

    Raises what source.open_source does, and Refused for a way that is not supported, naming the layer.
    """
    source = source_of(path)
    if not isinstance(source, SafetensorsSource) or not (file := source.path / "config.json").is_file():
        return source
    quantization = read_json(file).get("quantization_config")
    return QuantizedSource(source, reader(quantization, str(file))) if quantization else source


class QuantizedSource:
    """Safetensors with quantized weights: each goes by the name that it had before, and is read unpacked or packed.

    Tensors that no weight takes keep their names, so that the loader finds them left over. `tensors` are all as stored.
    """

    def __init__(self, source: SafetensorsSource, reader: Reader):
        self.path: Path = source.path
        self.tensors = source
        layers: dict[str, set[str]] = {}
        for name in source.names():
            layer, _, suffix = name.rpartition(".")
            layers.setdefault(layer, set()).add(suffix)
        self._plain = source.names()
        self._stored: dict[str, Stored] = {}
        for layer, suffixes in layers.items():
            if suffixes & reader.marks:
                stored = reader.open(Layer(layer, frozenset(suffixes), source.shape, source.stored))
                self._plain -= {f"{layer}.{suffix}" for suffix in stored.suffixes}
                self._stored[f"{layer}.weight"] = stored

    def names(self) -> set[str]:
        return self._plain | set(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._stored.get(name)
        return self.tensors.shape(name) if stored is None else stored.shape

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """See Source. A quantized weight is unpacked."""
        packed = self.packed(name)
        if packed is None:
            return self.tensors.read(name, into)
        found = packed[0].unpack(packed[1])
        if into is None:
            return found
        check_shape(self, name, into.shape)
        return into.copy_(found)

    def stored_as(self, name: str) -> list[str]:
        """The tensors that a weight is made of."""
        stored = self._stored.get(name)
        if stored is None:
            return [name]
        return [f"{name.rpartition('.')[0]}.{suffix}" for suffix in sorted(stored.suffixes)]

    def packed(self, name: str) -> tuple[Scheme, Packed] | None:
        stored = self._stored.get(name)
        if stored is None:
            return None
        scheme, packed = stored.convert()
        if scheme.size(packed) != stored.shape:
            raise BadCheckpoint(
                f"{self.path}: {name} has {scheme.size(packed)} values and not {stored.shape}"
            )
        return scheme, packed


class RoundedSource:
    """Another source whose matrices are given packed by `scheme`, each when asked for; the output head as it is."""

    def __init__(self, source: Source, scheme: Scheme, dtype: torch.dtype, device: torch.device | str):
        self.path, self.names, self.shape, self.read = source.path, source.names, source.shape, source.read
        self._scheme, self._dtype, self._device = scheme, dtype, device

    def packed(self, name: str) -> tuple[Scheme, Packed] | None:
        """See Source. Raises Refused for a weight that does not fit the scheme."""
        shape = self.shape(name)
        if len(shape) != 2 or name == f"{HEAD}.weight":
            return None
        check_fits(self._scheme, name.removesuffix(".weight"), *shape)
        weight = torch.empty(shape, dtype=self._dtype, device=self._device)
        return self._scheme, self._scheme.pack(self.read(name, weight))


class RandomSource:
    """Random matrices for the linear layers of a model: normal, of standard deviation 1 / sqrt(inputs)."""

    path = Path("random weights")

    def __init__(self, model: "Decoder", seed: int = 0):
        self._seed = seed
        self._shapes = {
            f"{name}.weight": (rows, layer.inputs)
            for names, layer in model.linears()
            for name, rows in zip(names, layer.outputs, strict=True)
        }

    def names(self) -> set[str]:
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """See Source. The same for the same seed and device."""
        into = torch.empty(self._shapes[name], device="cpu") if into is None else into
        generator = torch.Generator(into.device).manual_seed(self._seed + crc32(name.encode()))
        return into.normal_(0.0, into.shape[1] ** -0.5, generator=generator)

    def packed(self, name: str) -> tuple[Scheme, Packed] | None:
        return None


def check_fits(scheme: Scheme, layer: str, rows: int, columns: int) -> None:
    """Raises Refused, naming the layer, where a weight of this shape cannot be packed."""
    if reason := scheme.fits(rows, columns):
        raise Refused(
            f"{scheme.name} cannot pack {layer}: {reason}",
            param="model.quantization",
            hint="choose a scheme with smaller groups, or with whole rows",
        )


def is_rounded(quantization: Any) -> bool:
    """Whether a config.json's quantization_config says that weights have few bits, and are not only sparse."""
    if not isinstance(quantization, dict):
        return False
    groups = quantization.get("config_groups")
    return quantization.get("quant_method") in ("gptq", "awq", "fp8") or (
        isinstance(groups, dict) and any(isinstance(g, dict) and g.get("weights") for g in groups.values())
    )


def multiplied_packed(quantization: Any) -> bool:
    """Whether a GPU has kernels for what a config.json's quantization_config describes, so that it may stay packed."""
    if not isinstance(quantization, dict):
        return False
    method = quantization.get("quant_method")
    if method in ("gptq", "awq"):
        return quantization.get("bits", quantization.get("w_bit")) == 4
    if groups := quantization.get("config_groups"):
        return all(_has_kernel((group or {}).get("weights") or {}) for group in groups.values())
    return method == "fp8"


def _has_kernel(weights: dict[str, Any]) -> bool:
    bits, whole = weights.get("num_bits"), weights.get("strategy") in ("tensor", "channel")
    if weights.get("type") == "float":
        return bits == 8 and (whole or weights.get("strategy") == "block")
    return bits == 4 or (bits == 8 and whole and bool(weights.get("symmetric", True)))


def load_packed(
    model: "Decoder",
    source: Source,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make layers of a model on the meta device quantized where `source` has their weights so.

    To be called before memory is given to the rest of the model; `load` then fills that. A layer of several weights
    of which only some are quantized has the others as they are, in `dtype`. `progress` is told how many layers are
    done, of how many.
    """
    there = source.names()
    layers = list(model.linears())
    for number, (names, layer) in enumerate(layers, 1):
        weights = [f"{name}.weight" for name in names]
        if not there.issuperset(weights):
            continue  # load will say so
        for name, rows in zip(weights, layer.outputs, strict=True):
            check_shape(source, name, (rows, layer.inputs))
        found = [source.packed(name) for name in weights]
        if all(packed is None for packed in found):
            continue
        parts = [
            (PLAIN, {"weight": source.read(name).to(device, dtype)}) if packed is None else packed
            for name, packed in zip(weights, found, strict=True)
        ]
        placed = [(scheme, {k: t.to(device) for k, t in packed.items()}) for scheme, packed in parts]
        layer.become(placed, prepare=torch.device(device).type == "cuda")
        if progress is not None:
            progress(number, len(layers))


def online() -> dict[str, Scheme]:
    """Schemes that weights can be rounded to while they are read: without calibration, losing little."""
    return {name: scheme for name, scheme in known().items() if not scheme.spec.static and scheme.error < 1}


def rounded_layers(model: "Decoder") -> Iterator[tuple[list[str], Linear]]:
    """The layers of a model that are rounded while they are read: all but the output head."""
    yield from (pair for pair in model.linears() if HEAD not in pair[0])
