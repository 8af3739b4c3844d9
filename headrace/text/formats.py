"""Find out from its chat template how a model writes thoughts and calls of tools."""

import json
from itertools import takewhile
from typing import Any, NamedTuple

from headrace.base import discover
from headrace.base.errors import Refused
from headrace.text import reasoning, tools
from headrace.text.parts import Tool
from headrace.text.reasoning.think import Think
from headrace.text.speech import Speech
from headrace.text.template import ChatTemplate
from headrace.text.tools import ToolFormat

PROBE = Tool("probe_tool", {"type": "object", "properties": {"probe_key": {"type": "string"}}})
ARGUMENTS = {"probe_key": "probe value"}
QUESTION = "probe question"
# In the source of a template that cannot be asked, what speaks for a format; the first that is there counts.
SPOKEN = (
    ("<parameter=", "qwen_coder"),
    ("[ARGS]", "mistral_turns"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama"),
)


class Formats(NamedTuple):
    """What is known of a model's answers; None: it has no such thing, or one that is not known here."""

    tools: ToolFormat | None = None
    thinking: Think | None = None

    @property
    def tokens(self) -> frozenset[str]:
        """Texts that must reach the parsers even where they are special tokens."""
        return frozenset(
            (self.tools.tokens if self.tools else ()) + (self.thinking.tokens if self.thinking else ())
        )


def tool_formats() -> list[ToolFormat]:
    """All formats that are known."""
    return [format for module in discover.modules(tools) for format in module.FORMATS]


def detect(template: ChatTemplate) -> Formats:
    """Formats of a template. It is asked to render a call; the format that finds the call in it is its own."""
    thinking = (t for module in discover.modules(reasoning) for t in module.FORMATS)
    return Formats(_tools(template), next((t for t in thinking if t.fits(template.source)), None))


def _tools(template: ChatTemplate) -> ToolFormat | None:
    if "tools" not in template.variables:
        return None
    known = tool_formats()
    if answer := _rendered(template):
        found = [format for format in known if _finds(format, answer)]
        return max(found, key=lambda format: sum(text in answer for text in format.tokens), default=None)
    names = {format.name: format for format in known}
    return next((names[name] for text, name in SPOKEN if text in template.source), None)


def _rendered(template: ChatTemplate) -> str:
    """How the template writes an assistant's call, "" if it does not."""
    call = {"id": "probecall", "type": "function", "function": {"name": PROBE.name, "arguments": ARGUMENTS}}
    question = {"role": "user", "content": QUESTION}
    spec: dict[str, Any] = {
        "type": "function",
        "function": {"name": PROBE.name, "description": "", "parameters": {}},
    }
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        before = template.render([question], tools=[spec])
        whole = template.render([question, answer], tools=[spec], add_generation_prompt=False)
    except Refused:
        return ""
    if whole.startswith(before):
        return whole[len(before) :]
    # What is put before an answer differs from what stands before this one, by thinking that was opened, say.
    lines = zip(before.splitlines(True), whole.splitlines(True), strict=False)
    line = sum(len(one) for one, _ in takewhile(lambda pair: pair[0] == pair[1], lines))
    at = whole.rfind(QUESTION)
    return whole[max(line, at + len(QUESTION)) :] if at >= 0 else ""


def _finds(format: ToolFormat, answer: str) -> bool:
    said = Speech(format, tools=[PROBE]).whole(answer)
    if not said.calls or said.calls[0].name != PROBE.name:
        return False
    try:
        return json.loads(said.calls[0].arguments) == ARGUMENTS
    except ValueError:
        return False
