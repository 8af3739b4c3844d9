"""One tiny model for all tests of the library's entry points."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.api.async_llm import AsyncLLM
from headrace.api.llm import LLM
from tests import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shared(folder: Path) -> LLM:
    return LLM(folder, **tiny.SMALL)


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """A model at rest, and it is at rest afterwards."""
    shared.reset_prefix_cache()
    yield shared
    assert not shared.local.engine.busy
    assert not shared.local.streams
    pool = shared.local.engine.scheduler.pool
    assert pool.free == pool.count


@pytest.fixture
def engine(folder: Path) -> Iterator[AsyncLLM]:
    made = AsyncLLM(str(folder), **tiny.SMALL)
    yield made
    made.shutdown()
