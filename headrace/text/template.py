"""Render chat messages into the text of a prompt, with the template that a model was trained on."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import meta, nodes

from headrace.base.errors import Refused
from headrace.text.sandbox import Sandbox, too_much

Message = Mapping[str, Any]

# What an expression in a template can raise, apart from a Fault.
FAULTS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError,
    MemoryError, RuntimeError, SyntaxError,
)  # fmt: skip
# Names that a request may not give a meaning of its own.
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize",
    "namespace", "dict", "range", "raise_exception", "strftime_now", "cycler", "joiner", "self", "loop", "caller",
    "varargs", "kwargs",
}  # fmt: skip
REASONING = ("reasoning_content", "thinking", "reasoning")
# Private-use characters, so that no message holds it by chance; the space shows whether the template trims.
_MARK = "\ue000continue\ue001here "


class ChatTemplate:
    """A Jinja template as in `tokenizer_config.json`, compiled once, rendered in a sandbox within `seconds`.

    `variables` are the names it reads; `takes_parts` says whether it walks through content that is a list of parts.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        seconds: float = 5.0,
    ):
        """`special_tokens`: role, such as "bos_token", to text. Raises Refused, with the line, for no template."""
        self.source = source
        self.seconds = seconds
        self.special_tokens = {"bos_token": "", "eos_token": ""} | dict(special_tokens or {})
        self._sandbox = Sandbox()
        self._sandbox.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self._sandbox.filters["tojson"] = self._tojson
        try:
            tree = self._sandbox.read(source)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            self.takes_parts = _takes_parts(tree)
            self._knows_none = any(test.name == "none" for test in tree.find_all(nodes.Test))
            self._template = self._sandbox.compiled(tree)
        except jinja2.TemplateSyntaxError as error:
            raise _broken(f"does not parse: line {error.lineno}: {error.message}") from error
        except FAULTS as error:
            raise _broken(f"does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt, special tokens included: encode it with `add_special_tokens=False`.

        `add_generation_prompt` is on unless the final message is to be continued. Other names for the template come
        as keyword arguments, or, from strangers, in `chat_template_kwargs`. Raises Refused for messages that are
        none, for what the template itself refuses, for an option it would ignore, and when it does not end.
        """
        if add_generation_prompt and continue_final_message:
            raise Refused(
                "add_generation_prompt and continue_final_message exclude each other",
                param="continue_final_message",
            )
        try:
            chat = [self._message(m, f"messages[{n}]") for n, m in enumerate(_list(messages, "messages"))]
            given = {"tools": _objects(tools, "tools"), "documents": _objects(documents, "documents")}
            asked = _object(chat_template_kwargs or {}, "chat_template_kwargs")
            more = _object(kwargs, "chat_template_kwargs") | asked
        except RecursionError as error:
            raise Refused("messages, tools or documents are nested too deeply", param="messages") from error
        self._check_names(given, more)
        if continue_final_message:
            _mark_end(chat[-1])
        names = self.special_tokens | more | given
        names["add_generation_prompt"] = not continue_final_message and add_generation_prompt is not False
        text = self._render(chat, names)
        return _cut_at_mark(text) if continue_final_message else text

    def _render(self, chat: list[dict[str, Any]], names: dict[str, Any]) -> str:
        self._sandbox.budget.start(self.seconds)
        try:
            return self._template.render(names | {"messages": chat})
        except jinja2.TemplateError as error:
            raise Refused(f"the chat template refused: {error.message or error}", param="messages") from error
        except RecursionError as error:
            raise too_much("calls itself too deeply") from error
        except FAULTS as error:
            raise _broken(f"failed on these messages: {type(error).__name__}: {error}") from error

    def _check_names(self, given: Mapping[str, object], more: Mapping[str, object]) -> None:
        for name in more:
            if name in RESERVED or name in self.special_tokens or name.startswith("_"):
                raise Refused(f"chat_template_kwargs may not set {name!r}", param="chat_template_kwargs")
        for name, value in given.items():
            if value and name not in self.variables:
                raise Refused(
                    f"the model's chat template has no place for {name}", param=name, hint=f"leave {name} out, or give "
                    "a template that uses them with --chat-template FILE"
                )  # fmt: skip

    def _message(self, message: object, where: str) -> dict[str, Any]:
        """A copy that the template may see: plain values, content as it expects them."""
        copy = _object(message, where)
        if not isinstance(copy.get("role"), str) or not copy["role"]:
            raise Refused(
                f"{where}.role must be a string such as 'user', not {copy.get('role')!r}", param="messages"
            )
        if (calls := copy.get("tool_calls")) is not None:
            at = f"{where}.tool_calls"
            copy["tool_calls"] = [_tool_call(call, f"{at}[{n}]") for n, call in enumerate(_list(calls, at))]
        copy["content"] = self._content(copy, where)
        reasoning = next((copy[name] for name in REASONING if copy.get(name) is not None), None)
        return (
            copy if reasoning is None else {"thinking": reasoning} | copy | {"reasoning_content": reasoning}
        )

    def _content(self, message: dict[str, Any], where: str) -> Any:
        content = message.get("content")
        if isinstance(content, str):
            return content
        if content is None:
            if not message.get("tool_calls"):
                raise Refused(
                    f"{where}.content is missing", param="messages", hint="only tool calls stand without it"
                )
            return None if self._knows_none else ""
        if not isinstance(content, list):
            raise Refused(
                f"{where}.content must be a string or a list of parts, not {type(content).__name__}",
                param="messages",
            )
        parts = cast(list[object], content)
        texts = [_text_of(part, f"{where}.content[{n}]") for n, part in enumerate(parts)]
        return [{"type": "text", "text": text} for text in texts] if self.takes_parts else "\n".join(texts)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: no HTML escapes, characters as they are."""
        budget = self._sandbox.budget
        if any(isinstance(wide, int | str) and _width(wide) > 16 for wide in (indent, *(separators or ()))):
            raise too_much("indents JSON too far")
        budget.spend(budget.weigh(value))
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )


def _width(wide: int | str) -> int:
    return len(wide) if isinstance(wide, str) else wide


def _broken(what: str) -> Refused:
    return Refused(
        f"the chat template {what}",
        param="chat_template",
        hint="give another template with --chat-template FILE",
    )


# -- what templates can call --------------------------------------------------------------------------


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:2000])


def _strftime_now(form: str) -> str:
    if len(form) > 200 or re.search(r"%[-_0^#+]*\d", form):
        raise too_much("formats the date in a way that is not allowed")
    return datetime.now().strftime(form)


# -- what a template is given --------------------------------------------------------------------------


def _plain(value: object, where: str) -> Any:
    """A copy made of nothing but JSON's types, so that a template can reach nothing else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        entries = cast(Mapping[object, object], value)
        for key in entries:
            if not isinstance(key, str):
                raise Refused(f"{where} has a key that is no string: {key!r}", param=_field(where))
        return {str(key): _plain(item, f"{where}.{key}") for key, item in entries.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in cast(Sequence[object], value)]
    raise Refused(f"{where} holds {type(value).__name__}, which is no JSON value", param=_field(where))


def _field(where: str) -> str:
    """The request's field in which "messages[0].tool_calls" or "chat_template_kwargs.x" lies."""
    return re.split(r"[.\[]", where)[0]


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused(f"{where} must be an object, not {type(value).__name__}", param=_field(where))
    return _plain(cast(object, value), where)


def _objects(values: object, where: str) -> list[dict[str, Any]] | None:
    return [_object(item, f"{where}[{n}]") for n, item in enumerate(_list(values, where))] if values else None


def _list(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise Refused(f"{where} must be a list that is not empty, not {value!r:.80}", param=_field(where))
    return cast(Sequence[Any], value)


def _text_of(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    entries = cast(dict[str, Any], part) if isinstance(part, dict) else {"type": type(part).__name__}
    kind, text = entries.get("type"), entries.get("text")
    if kind not in ("text", "input_text", "output_text"):
        raise Refused(f"{where} is of type {kind!r:.60}; only text parts are understood", param="messages")
    if not isinstance(text, str):
        raise Refused(f"{where}.text must be a string, not {type(text).__name__}", param="messages")
    return text


def _tool_call(call: object, where: str) -> dict[str, Any]:
    """The API's arguments are a JSON string; templates expect the object itself."""
    copy = _object(call, where)
    function: dict[str, Any] = copy["function"] if isinstance(copy.get("function"), dict) else copy
    if not isinstance(function.get("name"), str):
        raise Refused(f"{where} names no function; expected its name and arguments", param="messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except ValueError as error:
            raise Refused(f"{where}.function.arguments is no JSON: {error}", param="messages") from error
    return copy


# -- continuing the final message ------------------------------------------------------------------------


def _mark_end(message: dict[str, Any]) -> None:
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + _MARK
    elif content:
        content[-1]["text"] += _MARK
    else:
        raise Refused("the final message has no content to continue", param="continue_final_message")


def _cut_at_mark(text: str) -> str:
    at = text.rfind(_MARK.rstrip())
    if at < 0:
        raise Refused(
            "the chat template leaves the end of the final message out, so it cannot be continued",
            param="continue_final_message",
        )
    return text[:at] if text.startswith(_MARK, at) else text[:at].rstrip()


# -- what a template can do with parts ---------------------------------------------------------------------


def _takes_parts(tree: nodes.Template) -> bool:
    """Whether some loop runs over a message's content, or over a name that was given that content."""
    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    """Filters and slices around it do not matter."""
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node, names)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is_content(node.node, names)
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    )
