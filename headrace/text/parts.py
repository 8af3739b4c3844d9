"""What an answer consists of: content, thoughts, and calls of tools."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec


class Content(NamedTuple):
    """More of what is said to the user."""

    text: str


class Thought(NamedTuple):
    """More of what the model thinks before it answers."""

    text: str


class CallStart(NamedTuple):
    """A call begins; calls are numbered from 0."""

    number: int
    id: str
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments, which are JSON once they are complete."""

    number: int
    text: str


Part = Content | Thought | CallStart | CallArguments


SHARED = ("$defs", "definitions", "x-guidance")
"""What stands at the top of a schema and holds for all that is in it."""


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters` is a JSON schema of an object."""

    name: str
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict[str, Any])
    strict: bool = False

    @property
    def properties(self) -> Mapping[str, Any]:
        """Schemas of the arguments, by name."""
        found = self.parameters.get("properties")
        return cast(Mapping[str, Any], found) if isinstance(found, Mapping) else {}

    def argument(self, key: str) -> object:
        """The schema of one argument, with the definitions that it may refer to."""
        schema = self.properties[key]
        if not isinstance(schema, Mapping):
            return schema
        shared = {name: self.parameters[name] for name in SHARED if name in self.parameters}
        return shared | dict(cast(Mapping[str, Any], schema))

    @property
    def required(self) -> Sequence[str]:
        """Names of the arguments that must be given."""
        found = self.parameters.get("required")
        names = cast(Sequence[object], found) if isinstance(found, list | tuple) else ()
        return [name for name in names if isinstance(name, str)]


Tools = Mapping[str, Tool]
"""The functions of a request, by name."""


class Call(msgspec.Struct):
    """A call as a whole."""

    id: str
    name: str
    arguments: str = ""


class Said(msgspec.Struct):
    """An answer as a whole; None where there was nothing of a kind."""

    content: str | None = None
    thought: str | None = None
    calls: list[Call] = msgspec.field(default_factory=list[Call])


def joined(parts: Iterable[Part]) -> Said:
    """All parts of an answer put together."""
    content: list[str] = []
    thought: list[str] = []
    calls: list[Call] = []
    arguments: dict[int, list[str]] = {}
    for part in parts:
        match part:
            case Content(text):
                content.append(text)
            case Thought(text):
                thought.append(text)
            case CallStart(number, id, name):
                calls.append(Call(id, name))
                arguments[number] = []
            case CallArguments(number, text):
                arguments[number].append(text)
    for call, pieces in zip(calls, arguments.values(), strict=True):
        call.arguments = "".join(pieces)
    return Said("".join(content) if content else None, "".join(thought) if thought else None, calls)


def random_id() -> str:
    """A call's id as most clients and templates like them."""
    return f"call_{secrets.token_hex(12)}"


BLANK = " \t\r\n"


class Out:
    """Collects parts; decides about the white space around them.

    Line breaks around a thought, and white space around a call, belong to the format: they are not shown.
    """

    def __init__(
        self,
        *,
        calls: bool = True,
        many: bool = True,
        thoughts: bool = True,
        new_id: Callable[[], str] = random_id,
    ):
        """`calls`: there may be calls; `many`: more than one is shown; `thoughts`: they are shown."""
        self.open = False
        self.empty = True
        self._calls, self._many, self._thoughts, self._new_id = calls, many, thoughts, new_id
        self._index = -1
        self._parts: list[Part] = []
        self._held: list[str] = []
        self._drop = ""
        self._thinking = self._said = self._stale = False

    def content(self, text: str) -> None:
        """Something said."""
        text = text.lstrip(self._drop) if self._drop else text
        if not text:
            return
        self._drop = ""
        shown = text.rstrip(BLANK) if self._calls else text
        if shown:
            self.empty, self._said, self._stale = False, True, False
            self._release(Content)
            self._parts.append(Content(shown))
        if len(shown) < len(text):
            self._held.append(text[len(shown) :])

    def thought(self, text: str) -> None:
        """Something thought."""
        if not self._thoughts:
            return
        if self.empty:
            text = text.lstrip("\n")
        self._thinking = True
        shown = text.rstrip("\n")
        if shown:
            self.empty = False
            self._release(Thought)
            self._parts.append(Thought(shown))
        if len(shown) < len(text):
            self._held.append(text[len(shown) :])

    def thought_ends(self) -> None:
        """What comes now is said."""
        self._held.clear()
        self._drop, self.empty, self._thinking = "\n", True, False

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins, and is open."""
        self._stale = True  # white space before it counts if more is said after it
        if not self._said:
            self._held.clear()
        self._drop, self.empty, self.open = BLANK, False, True
        self._index += 1
        if self._shown:
            self._parts.append(CallStart(self._index, id or self._new_id(), name))

    def arguments(self, text: str) -> None:
        """More arguments of the open call."""
        if self._shown and text:
            self._parts.append(CallArguments(self._index, text))

    def close(self) -> None:
        """The open call is complete."""
        self.open = False

    def drain(self, final: bool = False) -> list[Part]:
        """The parts since the last time, neighbours of one kind joined. After the `final` time nothing is held."""
        if final and not self._thinking and not self._stale:
            self._release(Content)
        parts, self._parts = self._parts, []
        return merged(parts) if len(parts) > 1 else parts

    @property
    def _shown(self) -> bool:
        return self._many or self._index == 0

    def _release(self, kind: type[Content] | type[Thought]) -> None:
        if self._held:
            self._parts.append(kind("".join(self._held)))
            self._held.clear()


def merged(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one part."""
    found: list[Part] = []
    run: list[Part] = []
    for part in parts:
        if run and (isinstance(part, CallStart) or type(part) is not type(run[0])):
            found.append(_one(run))
            run = []
        run.append(part)
    return [*found, _one(run)] if run else found


def _one(run: list[Part]) -> Part:
    if len(run) == 1:
        return run[0]
    text = "".join(part.text for part in run if not isinstance(part, CallStart))
    first = run[0]
    if isinstance(first, CallArguments):
        return CallArguments(first.number, text)
    return Thought(text) if isinstance(first, Thought) else Content(text)
