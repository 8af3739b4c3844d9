"""Two tiny models, and a text."""

from pathlib import Path

import pytest

from tests.tiny import folder

SMALL = ["--threads=1", "--memory.share=0.05", "--memory.kv-blocks=80"]
"""Flags with which they start at once."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    at = tmp_path_factory.mktemp("models")
    return str(folder(at / "base")), str(folder(at / "other", seed=1))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "own").write_text("The water of the headrace reaches the wheel, and the wheel turns. " * 5)
    return str(tmp_path / "own")
