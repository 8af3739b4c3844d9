"""Calls after [TOOL_CALLS]: a JSON list (v0.3, Nemo), or name and arguments by turns (Tekken from v11 on)."""

import re
import secrets
import string

from headrace.text.json_text import Malformed
from headrace.text.parts import Out, Tools
from headrace.text.tape import SPACE, Reading, Tape
from headrace.text.tools import Spell, ToolFormat
from headrace.text.tools._call import CallObject, choices, read_arguments, schema

OPENS, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
NAME = re.compile(r"[\w.-]*")
LETTERS = string.ascii_letters + string.digits


class Mistral(ToolFormat):
    """[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]name[ARGS]{...} once per call.

    Both are read, whichever a model was trained on; `turns` says which one a grammar asks for.
    """

    starts = (OPENS,)
    ends = (OPENS,)
    own_ids = True

    def __init__(self, name: str, turns: bool):
        self.name, self.turns = name, turns
        self.tokens = (OPENS, ARGS, ID) if turns else (OPENS,)

    def read(self, tape: Tape, out: Out, tools: Tools) -> Reading[None]:
        tape.take(len(OPENS))
        yield from tape.run(SPACE)
        match (yield from tape.peek()):
            case "[":
                tape.take(1)
                yield from self._list(tape, out)
            case "{":
                yield from CallObject(tape, out, ends=(OPENS,)).read()
            case _:
                yield from self._turn(tape, out)

    def _list(self, tape: Tape, out: Out) -> Reading[None]:
        while True:
            yield from tape.run(SPACE)
            yield from CallObject(tape, out, ends=("]",)).read()
            yield from tape.run(SPACE)
            if not (yield from tape.accept(",")):
                break
        yield from tape.accept("]")

    def _turn(self, tape: Tape, out: Out) -> Reading[None]:
        name, id = (yield from tape.word(NAME)), ""
        if (yield from tape.accept(ID)):
            id = yield from tape.word(NAME)
        marked = yield from tape.accept(ARGS)
        yield from tape.run(SPACE)
        if not name or (not marked and (yield from tape.peek()) != "{"):
            raise Malformed
        out.call(name, id)
        tape.forget()
        yield from read_arguments(tape, out, self.ends)
        out.close()
        tape.keep()

    def grammar(self, tools: Tools, many: bool, spell: Spell) -> str:
        if not self.turns:
            again = f"({spell(', ')} call)*" if many else ""
            start = f"calls: {spell(OPENS + ' [')} call {again} {spell(']')}"
            return "\n".join([start, choices(tools.values(), "arguments")])
        rules = [
            f"call_{n}: {spell(OPENS + tool.name + ARGS)} args_{n}\nargs_{n}: {schema(tool)}"
            for n, tool in enumerate(tools.values())
        ]
        names = " | ".join(f"call_{n}" for n in range(len(rules)))
        return "\n".join([f"calls: call{'+' if many else ''}", f"call: {names}", *rules])

    def new_id(self) -> str:
        """These templates insist on nine letters or digits."""
        return "".join(secrets.choice(LETTERS) for _ in range(9))


FORMATS = (Mistral("mistral", turns=False), Mistral("mistral_turns", turns=True))
