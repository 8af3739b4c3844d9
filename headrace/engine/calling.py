"""What a chat body says about tools and thinking, and how its answer is to be read; torch-free."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec

from headrace.base.errors import Refused
from headrace.engine import structured
from headrace.engine.structured import StructuredOutputsParams
from headrace.text.formats import Formats
from headrace.text.parts import Tool
from headrace.text.speech import Speech
from headrace.text.template import ChatTemplate
from headrace.text.tokenizer import Tokenizer

Body = Mapping[str, Any]

MOST_TOOLS = 512
NAME = re.compile(r"[a-zA-Z0-9_.:/-]{1,128}")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
CHOICES = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer to a chat is to be read.

    tools     functions that may be called; empty: nothing in the answer is a call
    forced    the answer must be a call
    many      it may be several calls
    thoughts  thoughts are part of the reply, instead of being left out
    begun     the prompt ends inside a thought
    """

    formats: Formats = Formats()
    tools: tuple[Tool, ...] = ()
    forced: bool = False
    many: bool = True
    thoughts: bool = True
    begun: bool = False

    def speech(self) -> Speech | None:
        """The reader of one answer; None where all of it is content."""
        format, thinking = (self.formats.tools if self.tools else None), self.formats.thinking
        if format is None and thinking is None:
            return None
        return Speech(
            format,
            thinking,
            tools=self.tools,
            begun=self.begun,
            many=self.many,
            thoughts=self.thoughts,
        )

    def listener(self) -> Speech | None:
        """A reader that only finds out where a thought ends; None where there are none."""
        thinking = self.formats.thinking
        return None if thinking is None else Speech(None, thinking, begun=self.begun, thoughts=False)

    def shown(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Special tokens that must reach the reader."""
        return special_ids(self.formats, tokenizer, bool(self.tools))

    def constraint(
        self, tokenizer: Tokenizer, otherwise: StructuredOutputsParams | None = None
    ) -> StructuredOutputsParams | None:
        """What the answer, after any thoughts, must follow; None where it is free.

        `otherwise` is what it must follow where it is no call; a form that is not JSON leaves no room for calls.
        Where calls are only possible, a `strict` tool has its schema followed once its call has begun, in formats
        that begin calls with a token of their own. Raises Refused for schemas out of bounds.
        """
        format = self.formats.tools
        if format is None or not self.tools:
            return otherwise
        tools = self.tools
        if self.forced:
            start = "start: calls"
        elif otherwise is not None:
            if (as_json := structured.embedded(otherwise)) is None:
                return otherwise
            start = f"start: calls | answer\nanswer: %json {json.dumps(as_json, ensure_ascii=False)}"
        elif any(tool.strict for tool in tools) and not format.leads and is_tag(format.starts[0], tokenizer):
            start = f"start: free (calls free){'*' if self.many else '?'}\nfree: /(.|\\n)*/"
            tools = tuple(
                tool if tool.strict else msgspec.structs.replace(tool, parameters={}) for tool in tools
            )
        else:
            return None
        bounded = {tool.name: msgspec.structs.replace(tool, parameters=_bounded(tool)) for tool in tools}
        rules = format.grammar(bounded, self.many, lambda text: spelled(text, format.tokens, tokenizer))
        grammar = f"{start}\n{rules}"
        # What has ::= in it is taken for another kind of grammar; here it can only stand in a quoted text.
        return StructuredOutputsParams(grammar=grammar.replace("::=", "\\u003a:="))


def switch(body: Body, name: str, default: Any = False) -> Any:
    """A field that is true or false, or not given. Raises Refused for anything else."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused(f"{name} is {value!r:.80}; expected true or false", param=name)
    return value


class Toolbox(msgspec.Struct, frozen=True):
    """The tools of a body. `specs` are what the template shows, `tools` what may be called."""

    specs: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Tool, ...] = ()
    forced: bool = False
    many: bool = True


def read_tools(body: Body) -> Toolbox:
    """`tools`, `tool_choice` and `parallel_tool_calls`. Raises Refused naming the field."""
    given, choice = body.get("tools"), body.get("tool_choice")
    many = switch(body, "parallel_tool_calls", True)
    if choice == "none" or (not given and choice in (None, "auto")):
        return Toolbox()  # a tool that may not be called is not shown either
    if not isinstance(given, list | tuple) or not given:
        what = "tool_choice is given without tools" if given is None or given == [] else "tools is no list"
        raise Refused(
            f"{what}; expected a list of functions",
            param="tools" if given else "tool_choice",
            hint="give tools, or leave tool_choice out",
        )
    specs = cast(Sequence[object], given)
    if len(specs) > MOST_TOOLS:
        raise Refused(f"there are {len(specs)} tools; expected at most {MOST_TOOLS}", param="tools")
    tools = tuple(_tool(spec, f"tools[{n}]") for n, spec in enumerate(specs))
    if len({tool.name for tool in tools}) < len(tools):
        raise Refused("two tools have the same name; expected different ones", param="tools")
    chosen = _chosen(choice, tools)
    shown = tuple(cast(Sequence[Mapping[str, Any]], specs))
    return Toolbox(shown, chosen, forced=choice not in (None, "auto"), many=many)


def _bounded(tool: Tool) -> Mapping[str, Any]:
    """The schema of a tool's arguments with what all schemas get here. Raises Refused for one out of bounds."""
    try:
        asked = StructuredOutputsParams(json={"type": "object"} | dict(tool.parameters))
        return structured.embedded(asked) or {}
    except Refused as fault:
        message = fault.message.replace("structured_outputs", f"the schema of tool {tool.name!r}", 1)
        raise Refused(message, param="tools") from fault


def _chosen(choice: object, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    if choice in (None, "auto", "required"):
        return tools
    function = choice.get("function") if isinstance(choice, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refused(f"tool_choice is {choice!r:.80}; expected {CHOICES}", param="tool_choice")
    found = tuple(tool for tool in tools if tool.name == function["name"])
    if not found:
        known = ", ".join(tool.name for tool in tools)
        raise Refused(
            f"tool_choice names {function['name']!r:.80}, which is not among tools: {known:.200}",
            param="tool_choice",
        )
    return found


def _tool(spec: object, where: str) -> Tool:
    function = spec.get("function") if isinstance(spec, Mapping) else None
    if not isinstance(function, Mapping) or cast(Body, spec).get("type", "function") != "function":
        raise Refused(
            f'{where} is no function; expected {{"type": "function", "function": {{"name": ...}}}}',
            param="tools",
        )
    name, parameters, strict = (function.get(key) for key in ("name", "parameters", "strict"))
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Refused(
            f"{where}.function.name is {name!r:.80}; expected up to 128 letters, digits, and _ . : / -",
            param="tools",
        )
    if parameters is not None and not isinstance(parameters, Mapping):
        raise Refused(f"{where}.function.parameters is no object; expected a JSON schema", param="tools")
    if strict is not None and not isinstance(strict, bool):
        raise Refused(f"{where}.function.strict is {strict!r:.80}; expected true or false", param="tools")
    return Tool(name, cast(Body, parameters or {}), bool(strict))


def read_voice(body: Body, box: Toolbox, formats: Formats, prompt: str, continued: bool) -> Voice:
    """How to read the answer to `prompt`, which is rendered from the body. Raises Refused naming the field."""
    if box.tools and formats.tools is None:
        raise Refused(
            "the chat template writes tool calls in a format that is not known here",
            param="tools",
            hint='leave tools out, or set "tool_choice": "none"',
        )
    return Voice(
        formats=formats,
        tools=box.tools,
        forced=box.forced,
        many=box.many,
        thoughts=switch(body, "include_reasoning", True),
        begun=formats.thinking is not None and formats.thinking.begun(prompt, continued),
    )


def effort(body: Body) -> dict[str, Any]:
    """What `reasoning_effort` means to a template. Raises Refused for a word that is none of EFFORTS."""
    given = body.get("reasoning_effort")
    if given is None:
        return {}
    if given not in EFFORTS:
        raise Refused(
            f"reasoning_effort is {given!r:.80}; expected one of {', '.join(EFFORTS)}",
            param="reasoning_effort",
        )
    off = {"enable_thinking": False, "thinking": False} if given == "none" else {}
    return {"reasoning_effort": given} | off


def messages_for(template: ChatTemplate, formats: Formats, messages: Sequence[object]) -> list[Any]:
    """Messages as clients send them, in the form that templates expect.

    Calls without any entries, missing content beside thoughts, names of tools that only their call tells, ids that
    another server made, and the role "developer" where a template knows nothing of it. What is no message stays.
    """
    length = len(formats.tools.new_id()) if formats.tools is not None and formats.tools.own_ids else None
    names: dict[str, str] = {}
    return [_message(cast(Body, m), template, names, length) if _is(m) else m for m in messages]


def _is(message: object) -> bool:
    return isinstance(message, Mapping)


def _message(message: Body, template: ChatTemplate, names: dict[str, str], length: int | None) -> Body:
    copy = dict(message)
    if copy.get("role") == "developer" and "developer" not in template.source:
        copy["role"] = "system"
    if not copy.get("tool_calls"):
        copy.pop("tool_calls", None)
        if copy.get("role") == "assistant" and copy.get("content") is None:
            copy["content"] = ""
    elif isinstance(copy["tool_calls"], list):
        copy["tool_calls"] = [_call(call, names, length) for call in copy["tool_calls"]]
    if copy.get("role") == "tool":
        id = copy.get("tool_call_id")
        if isinstance(id, str):
            if id in names:
                copy.setdefault("name", names[id])
            copy["tool_call_id"] = _fitting(id, length)
    return copy


def _call(call: object, names: dict[str, str], length: int | None) -> object:
    if not isinstance(call, Mapping):
        return call
    copy, id, function = dict(call), call.get("id"), call.get("function")
    if isinstance(function, Mapping):
        copy["function"] = dict(function) | {"arguments": _arguments(function.get("arguments"))}
    if isinstance(id, str):
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            names[id] = function["name"]
        copy["id"] = _fitting(id, length)
    return copy


def _arguments(given: object) -> object:
    """Arguments as the object that templates expect; a model's own broken ones must not break what comes after."""
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            given = json.loads(given) if given.strip() else {}
    if given is None:
        return {}
    return given if isinstance(given, Mapping) else {"invalid": given}


def _fitting(id: str, length: int | None) -> str:
    """The id, or one made of it for templates that insist on so many letters and digits."""
    if length is None or (len(id) == length and id.isascii() and id.isalnum()):
        return id
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:length]


def special_ids(formats: Formats, tokenizer: Tokenizer, calls: bool) -> tuple[int, ...]:
    """Ids of the special tokens that formats are written in; with `calls` off, those of thoughts alone."""
    texts = formats.tokens if calls else formats._replace(tools=None).tokens
    ids = (tokenizer.piece_to_id(text) for text in sorted(texts))
    return tuple(id for id in ids if id is not None and id in tokenizer.special_ids)


def is_tag(text: str, tokenizer: Tokenizer) -> bool:
    """Whether a text is one token that llguidance never takes for plain text."""
    added = tokenizer.backend.get_added_tokens_decoder().get(tokenizer.piece_to_id(text) or -1)
    return added is not None and (added.special or (text.startswith("<") and text.endswith(">")))


def spelled(text: str, tags: Iterable[str], tokenizer: Tokenizer) -> str:
    """Text as Lark source for llguidance, the `tags` in it that are one token as that token.

    llguidance takes every added token that looks like a tag for a special one, which no quoted text can produce.
    """
    ids = {tag: id for tag in tags if (id := tokenizer.piece_to_id(tag)) is not None}
    pattern = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    pieces = re.split(f"({pattern})", text) if pattern else [text]
    return " ".join(
        f"<[{ids[piece]}]>" if piece in ids else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    )
