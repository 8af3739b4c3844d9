"""Plug-ins are files: the modules of a folder, found by name."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from headrace.base.errors import UnknownName


def names(package: ModuleType) -> list[str]:
    """Module names directly inside `package`, sorted; nothing is imported."""
    return sorted(m.name for m in iter_modules(package.__path__) if not m.name.startswith("_"))


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """Every module of `package`, imported, in name order."""
    for name in names(package):
        yield import_module(f"{package.__name__}.{name}")


def module(package: ModuleType, name: str, what: str) -> ModuleType:
    """The module called `name`. Raises UnknownName with the list of known ones."""
    if name not in (known := names(package)):
        raise UnknownName.among(what, name, known)
    return import_module(f"{package.__name__}.{name}")
