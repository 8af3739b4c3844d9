"""Memory stays that of one block and what is known of one layer's inputs, whatever the model's size."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import models
from headrace.checkpoint import shards
from headrace.models.llama import TINY
from tests import tiny
from tests.optimize import small

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {
    **TINY, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    "max_position_embeddings": 512, "sliding_window": None, "dtype": "bfloat16",
}  # fmt: skip
"""Llama-3.2-1B, of which two blocks are enough: they come one after the other."""
BLOCK = 4 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 8192)
"""Bytes of one in float32, in which it is computed."""
CODE = """
import resource, sys
from headrace.optimize.recipe import Recipe
from headrace.optimize.run import run
run(sys.argv[1], sys.argv[2], Recipe.read(sys.argv[3]), device="cpu")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def folder(at: Path) -> Path:
    """A model of that shape, never in memory as a whole."""
    at.mkdir()
    with torch.device("meta"):
        model = models.build(SHAPE, 64)
    generator = torch.Generator().manual_seed(0)

    def rows(shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        if len(shape) == 1:
            yield torch.ones(shape)
            return
        for start in range(0, shape[0], 1024):
            count = min(1024, shape[0] - start)
            yield torch.randn(count, shape[1], generator=generator) * shape[1] ** -0.5

    entries = [
        shards.streamed(name, torch.bfloat16, tuple(tensor.shape), partial(rows, tuple(tensor.shape)))
        for name, tensor in model.sources()
    ]
    shards.write(at / "model.safetensors", entries)
    (at / "config.json").write_text(json.dumps(SHAPE))
    tiny.library().save(str(at / "tokenizer.json"))
    return at


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss has other units")
@pytest.mark.parametrize("algorithm", ["gptq", "rtn"])
def test_of_a_shape_of_a_billion(tmp_path: Path, algorithm: str):
    recipe = small.recipe(
        small.text(tmp_path / "text"), samples=1, tokens=512, dtype="auto", scheme="w4a16", passes=[algorithm]
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    words = [str(folder(tmp_path / "m")), str(tmp_path / "out"), str(tmp_path / "recipe.yaml")]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=True,
    )
    assert int(done.stdout) * 1024 < 1.5 * BLOCK + 500e6
    assert int(done.stdout) * 1024 > BLOCK, "as a check of what is measured"
