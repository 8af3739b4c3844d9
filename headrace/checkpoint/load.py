"""Fills a model's weights: from a checkpoint, or with random numbers of sensible size."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headrace.base.errors import BadCheckpoint
from headrace.checkpoint.quantized import open_source as open_source
from headrace.checkpoint.source import GgufSource as GgufSource
from headrace.checkpoint.source import SafetensorsSource as SafetensorsSource
from headrace.checkpoint.source import Source as Source
from headrace.checkpoint.source import check_shape
from headrace.nn.turn import Pending

if TYPE_CHECKING:
    from headrace.nn.attention import Attention
    from headrace.nn.decoder import Decoder

Progress = Callable[[int, int], None]  # bytes filled so far, bytes in all
# What old checkpoints carry and every implementation computes for itself; and scales of cached keys and values, which
# are wanted only where the cache has 8 bits.
NOT_WEIGHTS = re.compile(r"\.(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|[kv]_scale)$")
HEAD = "lm_head.weight"
SHOWN = 5  # names in a message
IN_FLIGHT = 1 << 28
"""Bytes of weights that are made into something else at once, at the most, if there are several."""


def load(model: "Decoder", source: Source, progress: Progress | None = None) -> None:
    """Fill every weight of `model` (already on its device) in place, converting to its dtype.

    Raises BadCheckpoint for a tensor that is unreadable, and what `check` does, before the first byte is read.
    """
    wanted = check(model, source)
    done, total = 0, sum(target.nbytes for target in wanted.values())
    for name, target in wanted.items():
        if target.is_meta:
            continue
        source.read(name, target)
        done += target.nbytes
        if progress is not None:
            progress(done, total)
    for names in _hand_over(list(model.pending()), source):
        done += sum(wanted[name].nbytes for name in names)
        if progress is not None:
            progress(done, total)


def check(model: "Decoder", source: Source) -> dict[str, Tensor]:
    """All weights of a model by name, once a checkpoint is known to have them; nothing is read.

    A tied model takes its head from the embedding: an lm_head.weight in the checkpoint is then left alone.
    Raises BadCheckpoint naming the tensors that are missing, left over or of another shape.
    """
    wanted = dict(model.sources())
    packed = {
        f"{name}.weight" for names, layer in model.linears() if layer.packed is not None for name in names
    }
    _compare(set(wanted), weights_of(source) - packed - ({HEAD} - set(wanted)), source)
    for name, target in wanted.items():
        check_shape(source, name, target.shape)
    return wanted


def weights_of(source: Source) -> set[str]:
    """Names of all that a model must have a place for."""
    return {name for name in source.names() if not NOT_WEIGHTS.search(name)}


def _hand_over(pending: list[Pending], source: Source) -> Iterator[list[str]]:
    """Read weights and have them taken, several at once; names of each that is done.

    A thread for a weight is worth more than several for one operation: much of it is done by one core whatever is set.
    """
    if not pending:
        return
    threads = torch.get_num_threads()
    largest = max(math.prod(each.shape) * each.dtype.itemsize for each in pending)
    workers = max(1, min(threads, IN_FLIGHT // largest))

    def hand_over(each: Pending) -> list[str]:
        weight, start = torch.empty(each.shape, dtype=each.dtype, device="cpu"), 0
        for name in each.names:
            rows = weight[start : start + source.shape(name)[0]]
            source.read(name, rows)
            start += len(rows)
        each.take(weight)
        return each.names

    torch.set_num_threads(max(1, threads // workers))  # of each worker; they are new, and see it
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(hand_over, pending)
    finally:
        torch.set_num_threads(threads)


def load_cache_scales(layers: Iterable[tuple[str, "Attention"]], source: Source) -> None:
    """Set k_scale and v_scale of layers, given with their names in the checkpoint, where it has them.

    Raises BadCheckpoint for a scale that is no positive number.
    """
    there = source.names()
    for name, layer in layers:
        layer.k_scale = _scale(source, f"{name}.k_scale", there)
        layer.v_scale = _scale(source, f"{name}.v_scale", there)


def _scale(source: Source, name: str, there: set[str]) -> float:
    if name not in there:
        return 1.0
    found = source.read(name)
    if found.numel() != 1 or not 0 < float(found) < float("inf"):
        raise BadCheckpoint(
            f"{source.path}: {name} is {found.flatten()[:3].tolist()}; expected one positive number"
        )
    return float(found)


def _compare(wanted: set[str], there: set[str], source: Source) -> None:
    faults = []
    if missing := sorted(wanted - there, key=_by_number):
        faults.append(f"lacks {len(missing)} of the tensors the model needs: {_some(missing)}")
    if extra := sorted(there - wanted, key=_by_number):
        faults.append(f"has {len(extra)} tensors the model does not know: {_some(extra)}")
    if faults:
        hint = "the configuration beside it describes another model, or a variant that is not known here"
        raise BadCheckpoint(f"{source.path} {', and '.join(faults)}", hint=hint)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def dummy(model: "Decoder", seed: int = 0) -> None:
    """Random weights, the same for the same seed and device: norms near one, the rest small and normal.

    Matrices have standard deviation 1 / sqrt(inputs), so that activations neither vanish nor explode.
    """
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for name, target in sorted(model.sources(), key=lambda pair: _by_number(pair[0])):
            if target.device not in generators:
                generators[target.device] = torch.Generator(target.device).manual_seed(seed)
            spread = target.shape[-1] ** -0.5 if target.dim() > 1 else 0.02
            target.normal_(0.0, spread, generator=generators[target.device])
            if name.endswith("norm.weight"):
                target.add_(1.0)
