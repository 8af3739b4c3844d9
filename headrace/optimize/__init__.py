"""Turns a model into a cheaper model: walks its blocks with a recipe. Called, it does so: `headrace.optimize(...)`."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.optimize.entry import optimize as optimize
    from headrace.optimize.outcome import Outcome


class Callable(ModuleType):
    """The package is what people call, too: importing a file of it makes `headrace.optimize` the package."""

    def __call__(self, *words: Any, **settings: Any) -> "Outcome":
        """See entry.optimize."""
        return self.optimize(*words, **settings)

    def __getattr__(self, name: str) -> Any:
        """`optimize`, which loads torch only when it is asked for."""
        if name != "optimize":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from headrace.optimize.entry import optimize

        return optimize


sys.modules[__name__].__class__ = Callable
