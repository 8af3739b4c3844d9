"""Writes a checkpoint that Hugging Face tools, and load.py, read back."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from headrace.base.errors import Refused
from headrace.checkpoint import shards


def save(
    folder: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    largest: int = shards.LARGEST,
) -> None:
    """Write tensors (as `Decoder.sources` gives them) and config.json into a new folder.

    Files hold up to `largest` bytes each. The folder appears complete or not at all. Raises Refused if it is
    there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise Refused(f"{folder} exists already", hint="give the path of a folder that does not exist yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        entries = [shards.entry(name, tensor) for name, tensor in tensors]
        planned = dict(shards.plan(entries, lambda entry: entry.nbytes, largest))
        for name, some in planned.items():
            shards.write(work / name, some)
        shards.write_index(work, planned)
        said = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
        (work / "config.json").write_text(said, "utf-8")
        work.chmod(0o755)  # temporary folders are for the owner's eyes only
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
