"""Calls as JSON objects between <tool_call> tags: Hermes, Qwen 2.5, Qwen 3 and many others."""

from headrace.text.parts import Out, Tools
from headrace.text.tape import SPACE, Reading, Tape
from headrace.text.tools import Spell, ToolFormat
from headrace.text.tools._call import CLOSES, OPENS, SURPLUS, CallObject, choices, in_tags


class Hermes(ToolFormat):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, once per call."""

    name = "hermes"
    starts = (OPENS,)
    ends = (CLOSES,)
    tokens = (OPENS, CLOSES)

    def read(self, tape: Tape, out: Out, tools: Tools) -> Reading[None]:
        tape.take(len(OPENS))
        yield from tape.run(SPACE)
        yield from CallObject(tape, out, ends=(CLOSES, OPENS)).read()
        yield from tape.run(SURPLUS)
        yield from tape.accept(CLOSES)

    def grammar(self, tools: Tools, many: bool, spell: Spell) -> str:
        return f"{in_tags(many, spell)}\n{choices(tools.values(), 'arguments')}"


FORMATS = (Hermes(),)
