"""Writes a checkpoint that Hugging Face tools, and load.py, read back."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from headrace.base.errors import Refused
from headrace.checkpoint.source import INDEX, SINGLE

LARGEST = 5 * 1000**3  # bytes in one file


def save(
    folder: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    extras: Iterable[Path] = (),
    largest: int = LARGEST,
) -> None:
    """Write tensors (as `Decoder.sources` gives them), config.json and copies of `extras` into a new folder.

    Files hold up to `largest` bytes each. The folder appears complete or not at all. Raises Refused if it is
    there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise Refused(f"{folder} exists already", hint="give the path of a folder that does not exist yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(work, _shards(tensors, largest))
        said = work / "config.json"
        said.write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", "utf-8")
        for weights in work.glob("*.safetensors"):
            shutil.copymode(said, weights)  # safetensors 0.8 makes files that only their owner reads
        for extra in extras:
            shutil.copyfile(extra, work / extra.name)
        work.chmod(0o755)  # temporary folders are for the owner's eyes only
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _shards(tensors: Iterable[tuple[str, Tensor]], largest: int) -> Iterator[dict[str, Tensor]]:
    """Up to `largest` bytes each, in order; only one is held at a time."""
    shard: dict[str, Tensor] = {}
    room = largest
    for name, tensor in tensors:
        if shard and tensor.nbytes > room:
            yield shard
            shard, room = {}, largest
        # Rows of a fused tensor share its storage, which the format does not allow: each is copied out.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        room -= tensor.nbytes
    yield shard


def _write(work: Path, shards: Iterator[dict[str, Tensor]]) -> None:
    tables: list[list[str]] = []
    size = 0
    for number, shard in enumerate(shards):
        file = work / f"{number}.safetensors"
        save_file(shard, file, metadata={"format": "pt"})
        with file.open("rb") as done:
            os.fsync(done.fileno())
        tables.append(list(shard))
        size += sum(tensor.nbytes for tensor in shard.values())
    count, where = len(tables), {}
    for number, names in enumerate(tables):  # how many there are shows only now
        name = SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
        (work / f"{number}.safetensors").rename(work / name)
        where |= dict.fromkeys(names, name)
    if count > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (work / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
