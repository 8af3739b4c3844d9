"""A tiny model on disk, a text to calibrate with, and recipes for both."""

import hashlib
import random
from pathlib import Path
from typing import Any

from headrace.models.llama import TINY
from headrace.optimize.recipe import Recipe
from tests import tiny

SIZES: dict[str, Any] = {
    **TINY, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "dtype": "float32",
}  # fmt: skip
WORDS = [
    "river", "mill", "stone", "wheel", "race", "head", "water", "turn", "grain", "flour", "sluice", "gate",
]  # fmt: skip


def model(at: Path, **changes: Any) -> Path:
    return tiny.folder(at, {**SIZES, **changes})


def text(at: Path, seed: int = 0) -> Path:
    """Some thousand words."""
    chosen = random.Random(seed)
    at.write_text(" ".join(chosen.choice(WORDS) for _ in range(3000)))
    return at


def recipe(
    text: Path | None, *, samples: int = 6, tokens: int = 24, dtype: str = "float32", **given: Any
) -> Recipe:
    """A recipe that takes a second; without a text there is no calibration."""
    calibration: dict[str, Any] = {"samples": 0}
    if text is not None:
        calibration = {"samples": samples, "tokens": tokens, "texts": [str(text)]}
    return Recipe.parse({"scheme": "w4a16_g32", "calibration": calibration, "dtype": dtype, **given})


def hashes(folder: Path) -> dict[str, str]:
    """Of all files, but the report, which holds times."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if not file.name.startswith("report")
    }
