"""What several files here use: made once, never changed."""

from pathlib import Path

import pytest

from tests.optimize import small


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of three blocks."""
    return small.model(tmp_path_factory.mktemp("optimize") / "m")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to calibrate with."""
    return small.text(tmp_path_factory.mktemp("text") / "words.txt")
