"""Calls as bare JSON objects: Llama 3.1, 3.2 and 3.3."""

from headrace.text.json_text import Malformed
from headrace.text.parts import Out, Tools
from headrace.text.tape import SPACE, Reading, Tape
from headrace.text.tools import Spell, ToolFormat
from headrace.text.tools._call import CallObject, choices

TAG = "<|python_tag|>"
FIRST = frozenset({"name", "type", "parameters", "arguments", "id"})


class Llama(ToolFormat):
    """{"name": ..., "parameters": {...}}, alone or after <|python_tag|>; several with "; " between them."""

    name = "llama"
    starts = (TAG,)
    leads = (TAG, "{")
    tokens = (TAG,)

    def read(self, tape: Tape, out: Out, tools: Tools) -> Reading[None]:
        while True:
            yield from tape.accept(TAG)
            yield from tape.run(SPACE)
            yield from CallObject(tape, out, tools, FIRST).read()
            yield from tape.run(SPACE)
            yield from tape.accept(";", ",")
            yield from tape.run(SPACE)
            if not (yield from tape.begins(TAG, "{")):
                break
        if (yield from tape.peek()):
            raise Malformed  # something else was said, separators are part of it

    def grammar(self, tools: Tools, many: bool, spell: Spell) -> str:
        again = f"({spell('; ')} call)*" if many else ""
        return "\n".join([f"calls: call {again}", choices(tools.values(), "parameters")])


FORMATS = (Llama(),)
