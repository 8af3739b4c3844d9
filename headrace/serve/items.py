"""Bodies of /v1/responses into bodies of a chat, and items into messages."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from headrace.base.errors import Refused
from headrace.engine import dialect, structured

Json = dict[str, Any]

# Fields that a chat has too, under the same name.
SAME = (dialect.CHAT | frozenset(structured.FIELDS)) - {
    "messages", "max_tokens", "max_completion_tokens", "response_format", "logprobs", "tools", "tool_choice",
    "stream_options", "n", "echo", "continue_final_message", "add_generation_prompt", "reasoning_effort", "documents",
}  # fmt: skip
OWN = frozenset(
    {
        "input", "instructions", "max_output_tokens", "text", "reasoning", "tools", "tool_choice", "store", "metadata",
        "previous_response_id", "background", "include", "truncation", "stream_options", "prompt", "conversation",
    }
)  # fmt: skip
IGNORED = dialect.IGNORED | {"max_tool_calls", "prompt_cache_retention", "enable_response_messages"}
# The names that a chat has for what a response calls differently.
RENAMED = {
    "messages": "input", "response_format": "text.format", "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort", "prompt": "input",
}  # fmt: skip

INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
"""Arguments of a custom tool, whose input is plain text."""

MOST_METADATA = 16


class Chat(NamedTuple):
    """A body of a chat, and what else a response's body asked for."""

    body: Json
    messages: list[Json]
    custom: frozenset[str]
    logprobs: bool
    unknown: tuple[str, ...]


def to_chat(body: Mapping[str, Any], before: Iterable[Json]) -> Chat:
    """The chat that a response's body asks for, after the messages `before`. Raises Refused naming the field."""
    _screen(body)
    messages = [*before, *to_messages(body.get("input"))]
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise Refused("instructions is no text; expected text", param="instructions")
    passed = (SAME | dialect.ONLY.keys()) - {"response_format"}  # what a chat refuses is refused here
    chat: Json = {name: body[name] for name in passed if body.get(name) is not None}
    chat["messages"] = _with_instructions(instructions, messages)
    chat["max_completion_tokens"] = body.get("max_output_tokens")
    custom = _tools(body, chat)
    _text(body, chat)
    if effort := _object(body, "reasoning").get("effort"):
        chat["reasoning_effort"] = effort
    logprobs = "message.output_text.logprobs" in _list(body, "include") or bool(body.get("top_logprobs"))
    if logprobs:
        chat["logprobs"] = True
    known = SAME | OWN | IGNORED | dialect.ONLY.keys()
    return Chat(chat, messages, custom, logprobs, tuple(str(name) for name in body if name not in known))


def renamed(fault: Refused) -> Refused:
    """What is wrong with a chat, in the words of a response."""
    if fault.param is None or (root := fault.param.split(".")[0].split("[")[0]) not in RENAMED:
        return fault
    fault.param, fault.message = RENAMED[root], fault.message.replace(root, RENAMED[root], 1)
    return fault


def _screen(body: Mapping[str, Any]) -> None:
    if body.get("truncation") not in (None, "disabled"):
        raise Refused(
            "truncation is not supported: prompts are never cut", param="truncation", hint="leave it out"
        )
    for name in ("prompt", "conversation"):
        if body.get(name) is not None:
            raise Refused(
                f"{name} is not supported here: nothing of that kind is stored",
                param=name,
                hint=f"leave {name} out",
            )
    for name in ("store", "background", "stream"):
        dialect.switch(body, name)
    given = body.get("metadata")
    if given is not None:
        texts = isinstance(given, Mapping) and all(isinstance(value, str) for value in given.values())
        if not texts or len(given) > MOST_METADATA:
            raise Refused(f"metadata is no object of at most {MOST_METADATA} texts", param="metadata")
    limit = body.get("max_output_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise Refused(f"max_output_tokens is {limit!r:.80}; expected 1 or more", param="max_output_tokens")


def _with_instructions(instructions: str | None, messages: list[Json]) -> list[Json]:
    """Instructions are the first thing said; templates want one system message, so a first one joins them."""
    if not instructions:
        return messages
    if (
        messages
        and messages[0].get("role") in ("system", "developer")
        and isinstance(messages[0]["content"], str)
    ):
        return [messages[0] | {"content": f"{instructions}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]


def _tools(body: Mapping[str, Any], chat: Json) -> frozenset[str]:
    """Tools and tool_choice, which are flat here; the names of custom tools."""
    specs = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(_list(body, "tools"))]
    custom = frozenset(str(tool.get("name")) for tool in _list(body, "tools") if tool.get("type") == "custom")
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping):
        match choice.get("type"):
            case "function" | "custom":
                choice = {"type": "function", "function": {"name": choice.get("name")}}
            case "allowed_tools":
                names = [tool.get("name") for tool in _list(choice, "tools") if isinstance(tool, Mapping)]
                specs = [spec for spec in specs if spec["function"].get("name") in names]
                choice = choice.get("mode", "auto")
            case kind:
                raise Refused(
                    f"tool_choice has type {kind!r:.60}; expected function, custom or allowed_tools",
                    param="tool_choice",
                )
    if specs:
        chat["tools"] = specs
    if choice is not None and (specs or choice != "auto"):
        chat["tool_choice"] = choice
    return custom


def _tool(tool: object, where: str) -> Json:
    entry = cast(Mapping[str, Any], tool) if isinstance(tool, Mapping) else {}
    match entry.get("type"):
        case "function":
            function = {key: value for key, value in entry.items() if key != "type" and value is not None}
        case "custom":
            function = {"name": entry.get("name"), "description": _described(entry), "parameters": INPUT}
        case kind:
            raise Refused(
                f"{where} has type {kind!r:.60}; expected function or custom, other tools are not run here",
                param="tools",
            )
    return {"type": "function", "function": function}


def _described(tool: Mapping[str, Any]) -> str:
    """A custom tool's description, with the grammar that its input shall follow."""
    form = tool.get("format")
    grammar = form.get("definition") if isinstance(form, Mapping) else None
    said = str(tool.get("description") or "")
    return f"{said}\nThe input follows this grammar:\n{grammar}" if grammar else said


def _text(body: Mapping[str, Any], chat: Json) -> None:
    """`text.format`, whose parts stand one level deeper in a chat."""
    form = _object(body, "text").get("format")
    if form is None:
        return
    if not isinstance(form, Mapping):
        raise Refused("text.format is no object; expected one", param="text.format")
    if form.get("type") == "json_schema":
        inner = {key: form[key] for key in ("name", "schema", "strict", "description") if key in form}
        chat["response_format"] = {"type": "json_schema", "json_schema": inner}
    else:
        chat["response_format"] = dict(form)


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise Refused(f"{name} is no object; expected one", param=name)
    return value or {}


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise Refused(f"{name} is no list; expected one", param=name)
    return value or []


# -- items ----------------------------------------------------------------------------------------------------


def to_items(given: object) -> list[Json]:
    """`input` as items. Raises Refused for what is neither text nor a list of items."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise Refused("input must be text, or a list of items", param="input")
    return cast(list[Json], given)


def to_messages(given: object) -> list[Json]:
    """`input` as messages of a chat: what an assistant thought, said and called in one go is one message."""
    messages: list[Json] = []
    for n, item in enumerate(to_items(given)):
        kind = item.get("type") or ("message" if "role" in item else None)
        read = _READ.get(str(kind))
        if read is None:
            raise Refused(
                f"input[{n}] has type {kind!r:.60}; expected one of {', '.join(_READ)}", param="input"
            )
        message = read(item, f"input[{n}]")
        last = messages[-1] if messages else {}
        if message["role"] == "assistant" and last.get("role") == "assistant" and _joins(last, message):
            messages[-1] = _joined(last, message)
        else:
            messages.append(message)
    return [
        message
        for message in messages
        if message["role"] != "assistant" or len(message) > 2 or message["content"]
    ]


def _joins(last: Json, more: Json) -> bool:
    """Whether `more` belongs to the same turn: a thought begins one, and so does a second text after calls."""
    if "reasoning_content" in more:
        return False
    return not (more.get("content") and (last.get("tool_calls") or last.get("content")))


def _joined(last: Json, more: Json) -> Json:
    calls = [*last.get("tool_calls", []), *more.get("tool_calls", [])]
    joined = last | {key: value for key, value in more.items() if value is not None}
    return joined | ({"tool_calls": calls} if calls else {})


def _message(item: Json, where: str) -> Json:
    role = item.get("role")
    if not isinstance(role, str):
        raise Refused(f"{where}.role is {role!r:.60}; expected a role such as user", param="input")
    return {"role": role, "content": _content(item.get("content"), where)}


def _content(content: object, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(f"{where} has content that is neither text nor a list of parts", param="input")
    texts: list[str] = []
    for part in cast(list[Any], content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in ("input_text", "output_text", "text", "refusal", "reasoning_text") or not isinstance(
            text, str
        ):
            raise Refused(f"{where} has a part of type {kind!r:.60}; only text is understood", param="input")
        texts.append(text)
    return "\n".join(texts)


def _call(item: Json, where: str) -> Json:
    arguments: Any = item.get("arguments")
    if item.get("type") == "custom_tool_call":
        arguments = {"input": item.get("input")}
    function = {"name": _named(item, "name", where), "arguments": arguments}
    call = {"id": _named(item, "call_id", where), "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _output(item: Json, where: str) -> Json:
    return {
        "role": "tool",
        "tool_call_id": _named(item, "call_id", where),
        "content": _content(item.get("output"), where) or "",
    }


def _reasoning(item: Json, where: str) -> Json:
    """A thought; of those that other servers made there may be nothing but a summary, which is not for models."""
    thought = _content(item.get("content") or [], where)
    return {"role": "assistant", "content": None} | ({"reasoning_content": thought} if thought else {})


def _named(item: Json, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"{where}.{name} is missing; expected text", param="input")
    return value


_READ = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _call,
    "custom_tool_call_output": _output,
    "reasoning": _reasoning,
}
