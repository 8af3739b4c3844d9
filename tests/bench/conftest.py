"""A tiny random model that reads bytes, 256 at once, 64 in a step."""

from pathlib import Path

import pytest

from headrace.api.llm import LLM
from tests.tiny import config, folder


@pytest.fixture(scope="session")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("bench") / "m")


@pytest.fixture(scope="session")
def llm(at: Path) -> LLM:
    return LLM(config=config(at))
