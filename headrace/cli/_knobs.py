"""The flags of every command that loads a model, made from the tree of knobs."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.field_info import FieldInfo

from headrace.base.config import Config, Memory, Model, Schedule
from headrace.base.errors import Refused


def flag(knob: str) -> str:
    """The flag of a knob: its dotted name, `-` for `_`; `model.`, `serve.` are left out, `model.path` is --model."""
    return "--" + _named(knob.removeprefix("model.").removeprefix("serve."))


def _named(name: str) -> str:
    return "model" if name == "path" else name.replace("_", "-")


def _short(info: FieldInfo, taken: frozenset[str]) -> str | None:
    return "-m" if info.name == "path" else None


_MODEL = Parameter(
    name="*", name_transform=_named, short_alias=_short, group=Group("Model", sort_key=2), negative_bool=()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a command takes of the tree of knobs: all of it."""

    model: Annotated[Model, _MODEL] = field(default_factory=Model)
    memory: Annotated[Memory, Parameter(group=Group("Memory", sort_key=3))] = field(default_factory=Memory)
    schedule: Annotated[Schedule, Parameter(group=Group("Schedule", sort_key=4))] = field(
        default_factory=Schedule
    )

    @property
    def config(self) -> Config:
        """The whole tree with what the flags say."""
        return Config(model=self.model, memory=self.memory, schedule=self.schedule)

    def of(self, path: str | None) -> "Engine":
        """With the model that is an argument, where one is given. Raises Refused where --model names another."""
        if path is None:
            return self
        if self.model.path not in (Model().path, path):
            raise Refused(f"two models are given: {path} and {self.model.path}", hint="leave --model out")
        return replace(self, model=replace(self.model, path=path))


EngineFlags = Annotated[Engine, Parameter(name="*")]
"""The type of a command's parameter that brings all of these flags."""
