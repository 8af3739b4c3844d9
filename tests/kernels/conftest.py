"""Kernels run on the GPU where there is one, and in Triton's interpreter where there is none."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from headrace.kernels import configs, table
from tests.kernels.interpreted import even_sums as even_sums
from tests.kernels.interpreted import interpreted as interpreted


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same numbers each time: bounds on rounding errors hold for most draws, not for all."""
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """Where kernels can run here."""
    pytest.importorskip("triton")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cache_of_memory() -> None:
    """Skips where torch has none, as under compute-sanitizer: while a graph is recorded nothing can be allocated."""
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        pytest.skip("recording needs torch's cache of memory")


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Lets a test write rows into the user's own table of a generation."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))

    def write(cap: tuple[int, int], **rows: list[table.Row]) -> None:
        table.write(table.own(cap), rows, {})
        configs.table.cache_clear()

    yield write
    configs.table.cache_clear()
