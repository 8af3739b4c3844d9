"""Calls as a Python list of function calls: Llama 3.2 and 4 with pythonic templates, Olmo, Toolace and others."""

import json
import re

from headrace.text.json_text import Malformed
from headrace.text.parts import Out, Tool, Tools
from headrace.text.tape import SPACE, Reading, Tape
from headrace.text.tools import Spell, ToolFormat
from headrace.text.tools._literal import dump, from_python

TAG = "<|python_tag|>"
NAME = re.compile(r"[\w.-]*")
OUTSIDE = re.compile(r"[^\"'()\[\]{},]*")
INSIDE = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}
CLOSE = {"(": ")", "[": "]", "{": "}"}


class Pythonic(ToolFormat):
    """[name(key=value, ...), ...], alone or after <|python_tag|>; values are Python or JSON literals."""

    name = "pythonic"
    starts = (TAG,)
    leads = (TAG, "[")
    tokens = (TAG,)

    def read(self, tape: Tape, out: Out, tools: Tools) -> Reading[None]:
        yield from tape.accept(TAG)
        yield from tape.run(SPACE)
        if not (yield from tape.accept("[")):
            raise Malformed
        while True:
            yield from tape.run(SPACE)
            name = yield from tape.word(NAME)
            if name not in tools or not (yield from tape.accept("(")):
                raise Malformed
            yield from _call(tape, out, name)
            yield from tape.run(SPACE)
            if not (yield from tape.accept(",")):
                break
        yield from tape.accept("]")

    def grammar(self, tools: Tools, many: bool, spell: Spell) -> str:
        again = f"({spell(', ')} call)*" if many else ""
        rules = [rule for n, tool in enumerate(tools.values()) for rule in _rules(n, tool)]
        calls = " | ".join(f"call_{n}" for n in range(len(tools)))
        return "\n".join([f'calls: "[" call {again} "]"', f"call: {calls}", *rules])


def _call(tape: Tape, out: Out, name: str) -> Reading[None]:
    """What follows an opening parenthesis; each argument is given out as soon as it is whole."""
    seen: set[str] = set()
    while True:
        yield from tape.run(SPACE)
        if (yield from tape.accept(")")):
            break
        key = yield from tape.word(NAME)
        yield from tape.run(SPACE)
        if not key or key in seen or not (yield from tape.accept("=")):
            raise Malformed
        pieces: list[str] = []
        yield from _value(tape, pieces)
        value = "".join(pieces).strip()
        if not value:
            raise Malformed
        if not seen:
            _open(tape, out, name)
        out.arguments(f"{', ' if seen else ''}{dump(key)}: {from_python(value)}")
        seen.add(key)
        yield from tape.accept(",")
    if not seen:
        _open(tape, out, name)
    out.arguments("}")
    out.close()
    tape.keep()


def _open(tape: Tape, out: Out, name: str) -> None:
    out.call(name)
    tape.forget()
    out.arguments("{")


def _value(tape: Tape, pieces: list[str]) -> Reading[None]:
    """Read up to the comma or parenthesis that ends a value. Raises Malformed."""
    stack: list[str] = []
    while True:
        yield from tape.run(OUTSIDE, pieces.append)
        match (yield from tape.peek()):
            case "":
                raise Malformed
            case "," | ")" if not stack:
                return
            case '"' | "'":
                yield from _quoted(tape, pieces)
                continue
            case "(" | "[" | "{" as bracket:
                stack.append(CLOSE[bracket])
            case ")" | "]" | "}" as bracket:
                if not stack or stack.pop() != bracket:
                    raise Malformed
            case _:
                pass  # a comma within brackets
        pieces.append(tape.take(1))


def _quoted(tape: Tape, pieces: list[str]) -> Reading[None]:
    quote = yield from tape.peek()
    three = yield from tape.ahead(3)
    fence = three if three == quote * 3 else quote
    pieces.append(tape.take(len(fence)))
    while True:
        yield from tape.run(INSIDE[quote], pieces.append)
        match (yield from tape.peek()):
            case "":
                raise Malformed
            case "\\":
                pieces.append(tape.take(len((yield from tape.ahead(2)))))
            case _ if (yield from tape.accept(fence)):
                pieces.append(fence)
                return
            case _:
                pieces.append(tape.take(1))


def _rules(n: int, tool: Tool) -> list[str]:
    """Lark rules of one function: required arguments first, then any of the others, with commas between."""
    required = [key for key in tool.properties if key in tool.required]
    others = [key for key in tool.properties if key not in required]
    keys = [*required, *others]
    rules = [
        f"arg_{n}_{i}: {json.dumps(f'{key}=')} %json {json.dumps(tool.argument(key))}"
        for i, key in enumerate(keys)
    ]
    must = ' ", " '.join(f"arg_{n}_{i}" for i in range(len(required)))
    last = " ".join(f'(", " arg_{n}_{i})?' for i in range(len(required), len(keys)))
    if must or not keys:
        body = f"{must} {last}"
    else:
        ways = [
            f"arg_{n}_{i} " + " ".join(f'(", " arg_{n}_{j})?' for j in range(i + 1, len(keys)))
            for i in range(len(keys))
        ]
        body = f"({' | '.join(ways)})?"
    return [f'call_{n}: {json.dumps(tool.name + "(")} {body} ")"', *rules]


FORMATS = (Pythonic(),)
