"""A tiny model on disk."""

from pathlib import Path

import pytest

from headrace.checkpoint.save import save
from tests.checkpoint.files import TINY, model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with config.json and one safetensors file."""
    save(tmp_path / "tiny", model(TINY).sources(), TINY)
    return tmp_path / "tiny"
