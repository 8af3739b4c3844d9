"""Calls as tags for the function and for each of its arguments: Qwen3-Coder, Qwen 3.5."""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from headrace.text.json_text import Malformed
from headrace.text.parts import Out, Tool, Tools
from headrace.text.tape import SPACE, Marks, Reading, Say, Tape
from headrace.text.tools import Spell, ToolFormat
from headrace.text.tools._call import CLOSES, OPENS, in_tags
from headrace.text.tools._literal import dump, from_text, types

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
NAME = re.compile(r"[^<>\n]*")
VALUE_ENDS = Marks(f"\n{END_PARAMETER}", END_PARAMETER, f"\n{PARAMETER}", f"\n{END_FUNCTION}")
TEXT = frozenset({"string"})
BETWEEN = Marks(PARAMETER, END_FUNCTION, CLOSES, OPENS)


class QwenCoder(ToolFormat):
    """<tool_call> <function=name> <parameter=key> value </parameter> ... </function> </tool_call>, line by line.

    Arguments have no quotes: the function's schema says what is a string. The outer tags may be missing.
    """

    name = "qwen_coder"
    starts = (OPENS, FUNCTION)
    ends = (CLOSES,)
    tokens = (OPENS, CLOSES)

    def read(self, tape: Tape, out: Out, tools: Tools) -> Reading[None]:
        """An open call is always brought to its end."""
        tagged = yield from tape.accept(OPENS)
        while True:
            yield from tape.run(SPACE)
            if not (yield from tape.accept(FUNCTION)):
                raise Malformed
            name = (yield from tape.word(NAME)).strip()
            known = name in tools
            if not name or not (known or tagged) or not (yield from tape.accept(">")):
                raise Malformed
            yield from self._function(tape, out, name, tools[name] if known else Tool(name))
            yield from tape.run(SPACE)
            if not (yield from tape.begins(FUNCTION)):
                break
        yield from tape.accept(CLOSES)

    def _function(self, tape: Tape, out: Out, name: str, tool: Tool) -> Reading[None]:
        out.call(name)
        tape.forget()
        out.arguments("{")
        seen: set[str] = set()
        while (yield from tape.until(BETWEEN, _drop)) == PARAMETER:
            tape.take(len(PARAMETER))
            key = (yield from tape.word(NAME)).strip()
            if not (yield from tape.accept(">")):
                continue
            say = out.arguments if key not in seen else _drop  # JSON has no second value for a key
            say(f"{', ' if seen else ''}{dump(key)}: ")
            seen.add(key)
            yield from self._value(tape, say, tool.properties.get(key))
        if (yield from tape.peek()):
            out.arguments("}")  # else the text broke off, and half a call must not look whole
        out.close()
        tape.keep()
        yield from tape.accept(END_FUNCTION)

    def _value(self, tape: Tape, say: Say, schema: object) -> Reading[None]:
        yield from tape.accept("\n")
        if types(schema) == TEXT:
            say('"')
            ended = yield from tape.until(VALUE_ENDS, lambda text: say(dump(text)[1:-1]))
            if ended:
                say('"')
        else:
            pieces: list[str] = []
            ended = yield from tape.until(VALUE_ENDS, pieces.append)
            if ended:
                say(from_text("".join(pieces), schema))
        if END_PARAMETER in ended:
            tape.take(len(ended))

    def grammar(self, tools: Tools, many: bool, spell: Spell) -> str:
        rules = [rule for n, tool in enumerate(tools.values()) for rule in _rules(n, tool)]
        return "\n".join(
            [
                in_tags(many, spell),
                "call: " + " | ".join(f"call_{n}" for n in range(len(tools))),
                *rules,
                r"text[lazy]: /(.|\n)*\n<\/parameter>\n/",
            ]
        )


def _rules(n: int, tool: Tool) -> list[str]:
    """Lark rules of one function: what is required must come, in the order of the schema."""
    items: list[str] = []
    rules: list[str] = []
    for i, key in enumerate(tool.properties):
        items.append(f"arg_{n}_{i}" + ("" if key in tool.required else "?"))
        rules.append(
            f"arg_{n}_{i}: {json.dumps(f'{PARAMETER}{key}>{chr(10)}')} {_argument(tool.argument(key))}"
        )
    head, tail = json.dumps(f"{FUNCTION}{tool.name}>\n"), json.dumps(END_FUNCTION)
    return [f"call_{n}: {head} {' '.join(items)} {tail}", *rules]


def _argument(schema: object) -> str:
    close = f"\n{END_PARAMETER}\n"
    if types(schema) != TEXT:
        return f"%json {json.dumps(schema)} {json.dumps(close)}"
    values = cast(Mapping[str, Any], schema).get("enum") if isinstance(schema, Mapping) else None
    if not isinstance(values, list) or not values:
        return "text"
    return "(" + " | ".join(dump(f"{value}{close}") for value in cast(list[object], values)) + ")"


def _drop(text: str) -> None:
    """What is not part of a call's arguments."""


FORMATS = (QwenCoder(),)
