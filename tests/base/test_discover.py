"""Plug-ins are found by the name of their file."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from headrace.base import discover
from headrace.base.errors import UnknownName


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = tmp_path / "animals_for_a_test"
    folder.mkdir()
    for name in ("__init__", "dog", "cat", "_hidden"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return __import__(folder.name)


def test_names_are_files_sorted_and_imports_nothing(animals: ModuleType):
    assert discover.names(animals) == ["cat", "dog"]
    assert f"{animals.__name__}.cat" not in sys.modules


def test_modules_are_imported_in_order(animals: ModuleType):
    assert [m.NAME for m in discover.modules(animals)] == ["cat", "dog"]


def test_one_module_by_name(animals: ModuleType):
    assert discover.module(animals, "dog", "animal").NAME == "dog"
    with pytest.raises(UnknownName, match="unknown animal 'dgo'") as refused:
        discover.module(animals, "dgo", "animal")
    assert refused.value.hint == "did you mean 'dog'? known: cat, dog"
