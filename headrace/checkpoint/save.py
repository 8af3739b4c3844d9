"""Writes a checkpoint that Hugging Face tools, and load.py, read back."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
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
        _write(work, _grouped(tensors, largest))
        (work / "config.json").write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", "utf-8")
        for extra in extras:
            shutil.copyfile(extra, work / extra.name)
        work.chmod(0o755)  # temporary folders are for the owner's eyes only
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _grouped(tensors: Iterable[tuple[str, Tensor]], largest: int) -> list[dict[str, Tensor]]:
    groups: list[dict[str, Tensor]] = [{}]
    room = largest
    for name, tensor in tensors:
        if groups[-1] and tensor.nbytes > room:
            groups.append({})
            room = largest
        groups[-1][name] = tensor
        room -= tensor.nbytes
    return groups


def _write(work: Path, groups: list[dict[str, Tensor]]) -> None:
    count, table = len(groups), {}
    for number, group in enumerate(groups, 1):
        file = SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        # Rows of a fused tensor share its storage, which the format does not allow: each is copied out.
        own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in group.items()}
        save_file(own, work / file, metadata={"format": "pt"})
        with (work / file).open("rb") as written:
            os.fsync(written.fileno())
        table |= dict.fromkeys(group, file)
    if count > 1:
        size = sum(tensor.nbytes for group in groups for tensor in group.values())
        index = {"metadata": {"total_size": size}, "weight_map": table}
        (work / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
