"""Tiny models for the tests of what runs."""

from pathlib import Path

import pytest

from headrace.models import gemma, llama
from headrace.nn.decoder import Decoder
from tests import tiny


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "llama", llama.TINY)


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows, soft-caps and two layer groups."""
    return tiny.folder(tmp_path_factory.mktemp("models") / "gemma", gemma.TINY)


@pytest.fixture(scope="session")
def llama_decoder(llama_folder: Path) -> Decoder:
    return tiny.decoder(llama_folder)
