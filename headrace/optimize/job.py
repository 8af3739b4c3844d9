"""A run decided: the model's files and shapes, what each layer gets, and the calibration windows; nothing is done."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace import __version__, models
from headrace.base.errors import Refused
from headrace.base.home import expanded
from headrace.checkpoint.config import read_config, read_tokenizer
from headrace.checkpoint.hub import find
from headrace.checkpoint.load import check, open_source
from headrace.checkpoint.source import Source
from headrace.nn.decoder import Block, Decoder
from headrace.optimize.calibrate import fingerprint
from headrace.optimize.recipe import DTYPES, Assigned, Recipe
from headrace.optimize.work import check_free, folder_of
from headrace.quant.scheme import Scheme


@dataclass(frozen=True)
class Job:
    """model      as it was asked for; path: its files
    out        the folder to be written
    settings   of the source (see checkpoint.config), but for what the run changes
    recipe     with a scheme
    plan       what each projection gets, by its name in checkpoints, in the model's order; the head among them
    ids_ST     calibration windows; None without calibration
    untied     the head was the embedding and will have a weight of its own
    dtype      of scales, and of what stays as it is
    device     where it is computed
    """

    model: str
    path: Path
    out: Path
    settings: dict[str, Any]
    recipe: Recipe
    plan: dict[str, Assigned]
    ids_ST: Tensor | None
    untied: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding in what is written."""
        return bool(self.settings["tie_word_embeddings"])

    def build(self) -> Decoder:
        """The model to be written, on the meta device."""
        return _meta(self.settings, self.recipe.calibration.tokens)

    def open(self) -> Source:
        """The source, opened anew: pages of files that were read count as ours until they are closed."""
        return open_source(self.path)

    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of the result, for a run that goes on with another's work."""
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files_of(self.path)]
        return {
            "headrace": __version__,
            "torch": torch.__version__,
            "model": str(self.path.resolve()),
            "files of the model": [list(each) for each in stats],
            "configuration": self.settings,
            "recipe": self.recipe.as_object(),
            "calibration texts": None if self.ids_ST is None else fingerprint(self.ids_ST),
            "dtype": str(self.dtype),
            "device": self.device.type,
        }


def look(
    model: str,
    out: str | Path,
    recipe: Recipe,
    device: str = "auto",
    tell: Callable[[str], None] | None = None,
) -> Job:
    """Decide a run; reads no weights. Raises Refused for all that can be known to go wrong.

    `tell` is told what takes a while.
    """
    out = _place(out)
    _check_words(model, str(out), *recipe.calibration.texts)
    where = device_named(device)
    path = find(model)
    settings = read_config(path)
    check(_meta(settings, 16), open_source(path))
    untied = bool(settings["tie_word_embeddings"]) and (recipe.turn is not None or recipe.rounds_head)
    if untied:
        settings = {**settings, "tie_word_embeddings": False}
    meta = _meta(settings, 16)
    recipe = recipe.settled(meta)
    plan = recipe.plan(meta)
    _check_longest(recipe, settings)
    ids_ST = None
    if recipe.calibration.samples:
        if tell is not None:
            tell("reading calibration texts")
        ids_ST = recipe.calibration.windows(read_tokenizer(path))
        if int(ids_ST.max()) >= meta.shape.vocab:
            raise Refused(
                f"the tokenizer gives ids beyond the model's vocabulary of {meta.shape.vocab}", param="model"
            )
    return Job(model, path, out, settings, recipe, plan, ids_ST, untied, _dtype(recipe, settings), where)


def _place(out: str | Path) -> Path:
    """Where the result will be. Raises Refused where a folder could not move to in the end."""
    try:
        given = expanded(out)
        fixed = given.is_symlink() or os.path.ismount(given)
        place = given.resolve()
        check_free(place)
        folder_of(place).exists()  # its name may be too long
    except (OSError, RuntimeError, ValueError) as fault:
        raise Refused(f"{out} cannot be written: {fault}", param="out") from fault
    if fixed:
        raise Refused(
            f"{out} is a link, or where a disk is mounted, and cannot be replaced",
            param="out",
            hint="give the path of a new folder in it",
        )
    return place


def _check_words(*words: str) -> None:
    """Raises Refused for a path that the files of the result could not name."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as fault:
            raise Refused(f"{word!r} is not UTF-8", hint="give it another name") from fault


def files_of(path: Path) -> list[Path]:
    """That hold a model's weights."""
    if not path.is_dir():
        return [path]
    # Of some models the same weights lie beside them in their makers' own form.
    return sorted(f for f in path.glob("*.safetensors") if not f.name.startswith("consolidated"))


def schemes_of(plan: dict[str, Assigned], names: list[str]) -> list[Scheme]:
    """Of the projections that are rounded."""
    found = (plan[name].scheme for name in names)
    return [scheme for scheme in found if scheme is not None]


def blocks_of(model: Decoder) -> list[Block]:
    """With their type."""
    return [block for block in model.blocks if isinstance(block, Block)]


def _meta(settings: dict[str, Any], longest: int) -> Decoder:
    with torch.device("meta"):
        return models.build(settings, longest)


def device_named(name: str) -> torch.device:
    """Where to compute; "auto": on a GPU where there is one. Raises Refused for what is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise Refused(f"device {name!r} is not known", param="device", hint="cpu, cuda, cuda:1") from fault
    there = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= there:
        raise Refused(f"there is no device {name!r}", param="device", hint="use --device cpu")
    return device


def _dtype(recipe: Recipe, settings: dict[str, Any]) -> torch.dtype:
    """16 bits unless the recipe says otherwise: a GGUF file's float32 norms are no reason to double an embedding."""
    said = settings.get("dtype") if recipe.dtype == "auto" else recipe.dtype
    return (
        DTYPES[said] if said in DTYPES and (recipe.dtype != "auto" or said != "float32") else torch.bfloat16
    )


def _check_longest(recipe: Recipe, settings: dict[str, Any]) -> None:
    longest, tokens = int(settings["max_position_embeddings"]), recipe.calibration.tokens
    if recipe.calibration.samples and tokens > longest:
        raise Refused(
            f"windows of {tokens} tokens are asked for; this model reads {longest} at most",
            param="tokens",
            hint=f"use --tokens {longest} or less",
        )
