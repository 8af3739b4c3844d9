"""A call as a JSON object with a name and arguments, which several formats have in common."""

import json
import re
from collections.abc import Container, Iterable

from headrace.text import json_text
from headrace.text.json_text import Malformed
from headrace.text.parts import Out, Tool
from headrace.text.tape import SPACE, Reading, Tape
from headrace.text.tools import Spell

OPENS, CLOSES = "<tool_call>", "</tool_call>"
"""Tags around a call, of whatever form it is."""

ARGUMENTS = frozenset({"arguments", "parameters"})
SURPLUS = re.compile(r"[ \t\r\n}\]]*")
"""Closing brackets too many, as models write them."""


class CallObject:
    """Reads one {"name": ..., "arguments": {...}}, keys in any order.

    `known` restricts the names. `first` restricts the first key, to tell early that an object is no call.
    `ends` are texts before which missing brackets are added.
    """

    def __init__(
        self,
        tape: Tape,
        out: Out,
        known: Container[str] | None = None,
        first: Container[str] | None = None,
        ends: tuple[str, ...] = (),
    ):
        self.tape, self.out, self.known, self.first, self.ends = tape, out, known, first, ends
        self.name: str | None = None
        self.early: str | None = None

    def read(self) -> Reading[None]:
        """Read it; the call is closed then. Raises Malformed, as `ToolFormat.read`."""
        if not (yield from self.tape.accept("{")):
            raise Malformed
        while (yield from self._member()):
            self.first = None
        if not self.out.open:
            if self.name is None:
                raise Malformed
            self.out.call(self.name)
            self.tape.forget()
            self.out.arguments(_as_object(self.early))
        self.out.close()
        self.tape.keep()

    def _member(self) -> Reading[bool]:
        """Read a member and what follows it; False after the last one."""
        tape = self.tape
        yield from tape.run(SPACE)
        if (yield from tape.accept("}")):
            return False
        key = yield from _string(tape)
        if self.first is not None and key not in self.first:
            raise Malformed
        yield from tape.run(SPACE)
        if not (yield from tape.accept(":")):
            raise Malformed
        yield from tape.run(SPACE)
        if key == "name" and self.name is None:
            self.name = yield from _string(tape)
            if not self.name or (self.known is not None and self.name not in self.known):
                raise Malformed
        elif key in ARGUMENTS and not self.out.open:
            yield from self._arguments()
        else:
            yield from json_text.text(tape)
        yield from tape.run(SPACE)
        if (yield from tape.accept(",")):
            return True
        if not (yield from tape.accept("}")) and not self.out.open:
            raise Malformed
        return False  # the object's own bracket is often forgotten; its arguments are complete

    def _arguments(self) -> Reading[None]:
        tape, out = self.tape, self.out
        if self.name is None:
            self.early = yield from json_text.text(tape)
            return
        if (yield from tape.peek()) != "{":
            early = yield from json_text.text(tape)
            self._open(self.name)
            out.arguments(_as_object(early))
            return
        self._open(self.name)
        yield from read_arguments(tape, out, self.ends)

    def _open(self, name: str) -> None:
        self.out.call(name)
        self.tape.forget()


def read_arguments(tape: Tape, out: Out, ends: tuple[str, ...]) -> Reading[None]:
    """Read the open call's arguments; brackets that are missing before one of `ends` are added. Raises Malformed."""
    try:
        yield from json_text.value(tape, out.arguments)
    except Malformed as fault:
        if not fault.closers or not ends or not (yield from tape.begins(*ends)):
            raise
        out.arguments(fault.closers)


def _string(tape: Tape) -> Reading[str]:
    pieces: list[str] = []
    yield from json_text.string(tape, pieces.append)
    return _decoded("".join(pieces))


def _as_object(text: str | None) -> str:
    """Arguments that came as null, as nothing, or as a string that holds the JSON."""
    if text is None or text in ("null", '""'):
        return "{}"
    return _decoded(text) if text.startswith('"') else text


def _decoded(text: str) -> str:
    """The string that JSON text stands for; halves of surrogate pairs, which are no text, become U+FFFD."""
    return json.loads(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def choices(tools: Iterable[Tool], key: str) -> str:
    """Lark rules `call: ...` of JSON objects in the usual order, `key` naming the arguments."""
    rules: list[str] = []
    for n, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
        rules += [f'call_{n}: {head} args_{n} "}}"', f"args_{n}: {schema(tool)}"]
    names = " | ".join(rule.split(":")[0] for rule in rules[::2])
    return "\n".join([f"call: {names}", *rules])


def in_tags(many: bool, spell: Spell) -> str:
    """Lark rules `calls: ...` of one `call` between tags, or of several with a line break between them."""
    again = f"({spell(chr(10))} one)*" if many else ""
    return f"calls: one {again}\none: {spell(OPENS + chr(10))} call {spell(chr(10) + CLOSES)}"


def schema(tool: Tool) -> str:
    """A tool's arguments as Lark."""
    return "%json " + json.dumps({"type": "object"} | dict(tool.parameters))
