"""OpenAI bodies, with vLLM's extra fields, into what the engine understands; torch-free.

A field is translated, known to change nothing here (IGNORED), accepted with the one value that asks for what we do
anyway (ONLY), or unknown: then it is named in `Ask.unknown`, for a warning, and left alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

import msgspec

from headrace.base.errors import Refused
from headrace.engine import fields, structured
from headrace.engine.calling import Body, Voice, effort, messages_for, read_tools, read_voice, switch
from headrace.engine.intake import Intake
from headrace.engine.request import SamplingParams
from headrace.engine.structured import StructuredOutputsParams, behind_thoughts
from headrace.text.speech import Speech

# Fields that are called the same here and there; null means "not given".
SAME = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "bad_words", "include_stop_str_in_output", "ignore_eos", "min_tokens",
    "prompt_logprobs", "skip_special_tokens", "spaces_between_special_tokens", "logit_bias", "allowed_token_ids",
)  # fmt: skip
BOTH = frozenset(
    {
        *SAME,
        *structured.FIELDS,
        "model",
        "logprobs",
        "max_tokens",
        "stream",
        "stream_options",
        "echo",
        "add_special_tokens",
        "cache_salt",
    }
    | {"priority", "return_token_ids", "return_tokens_as_token_ids", "timeout_ms", "timings", "request_id"}
)
STREAM_OPTIONS = ("include_usage", "continuous_usage_stats")
CHAT = BOTH | {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "add_generation_prompt",
    "continue_final_message", "documents", "chat_template_kwargs", "reasoning_effort",
    "parallel_tool_calls", "include_reasoning",
}  # fmt: skip
COMPLETION = BOTH | {"prompt"}
IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "verbosity", "session_id",
        "stream_interval", "media_io_kwargs", "mm_processor_kwargs", "prompt_cache_key",
        "safety_identifier", "guided_decoding_backend",
    }
)  # fmt: skip
_PRIORITY = fields.whole(-(1 << 63), (1 << 63) - 1, "a whole number", optional=True)
_LIMIT = fields.whole(1, None, "a whole number, 1 or more", optional=True)
_NONE = (None,)
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((None, 1), "ask for n answers and choose"),
    "use_beam_search": ((None, False), "beam search is not supported"),
    "length_penalty": ((None, 1, 1.0), "it belongs to beam search, which is not supported"),
    "suffix": ((None, ""), "filling in the middle is not supported yet"),
    "functions": ((None, []), "this is the old name; use tools"),
    "function_call": ((None, "none"), "this is the old name; use tool_choice"),
    "modalities": ((None, ["text"]), "answers are text"),
    "audio": (_NONE, "answers are text"),
    "prediction": (_NONE, "predicted output is not supported"),
    "web_search_options": (_NONE, "nothing is looked up"),
    "chat_template": (_NONE, "a template of the request's own is not accepted; give it with --chat-template"),
    "prompt_embeds": (_NONE, "prompts are text or token ids"),
    "truncate_prompt_tokens": (_NONE, "prompts are never cut"),
    "logprob_token_ids": (_NONE, "log-probabilities are those of the likeliest tokens"),
    "thinking_token_budget": (_NONE, "thinking is not told from answering yet"),
    "repetition_detection": (_NONE, "repetition is not looked for"),
    "kv_transfer_params": (_NONE, "KV blocks stay in this process"),
    "ec_transfer_params": (_NONE, "models of text only are run"),
    "watermarking": (_NONE, "answers are not watermarked"),
}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asks for: these prompts, with these params, and how the reply shall look.

    before      for each prompt, the text that the reply repeats in front of every answer (`echo`)
    scoring     nothing is to be generated (max_tokens 0 with echo): the one token that is, is left out of the reply
    voice       how the answer to a chat is read
    logprobs    how many likely tokens the reply shows per position; None: no log-probabilities
    bare_ids    tokens are written "token_id:N" instead of as text
    show_ids    the reply has token ids beside the text
    timeout_ms  how long the whole answer may take
    timings     the reply says how long its parts took
    request_id  the client's name for the request
    unknown     fields that nobody knows, for a warning
    """

    kind: Literal["chat", "completion"]
    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    before: tuple[str, ...]
    voice: Voice | None = None
    echo: bool = False
    scoring: bool = False
    logprobs: int | None = None
    model: str | None = None
    salt: str = ""
    priority: int = 0
    bare_ids: bool = False
    show_ids: bool = False
    stream: bool = False
    stream_options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    timeout_ms: int | None = None
    timings: bool = False
    request_id: str | None = None
    unknown: tuple[str, ...] = ()

    def speech(self) -> Speech | None:
        """The reader of one answer, which tells its parts apart; None where all of it is content."""
        return self.voice.speech() if self.voice is not None else None


def read_chat(body: Body, intake: Intake, defaults: SamplingParams) -> Ask:
    """A body of /v1/chat/completions. `defaults` holds for what it leaves out. Raises Refused naming the field."""
    unknown = _screen(body, CHAT)
    messages = _messages(body)
    logprobs = _chat_logprobs(body, intake.max_logprobs)
    limit = _first(body, "max_completion_tokens", "max_tokens")
    echo = (
        switch(body, "echo") and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"
    )
    last = messages[-1].get("content") if echo else ""
    ids, voice = _spoken(body, messages, intake, whole=True)
    more = {
        "shown_token_ids": voice.shown(intake.text_tokenizer),
        "structured_outputs": _constraint(body, intake, voice),
    }
    return Ask(
        kind="chat",
        prompts=(tuple(ids),),
        voice=voice,
        params=_params(body, defaults, max_tokens=limit, logprobs=logprobs, **more),
        before=(last if isinstance(last, str) else "",),
        echo=echo,
        logprobs=logprobs,
        unknown=unknown,
        **_shape(body),
    )


def chat_ids(body: Body, intake: Intake) -> list[int]:
    """The token ids of a chat body's messages, as its prompt would have them. Raises Refused naming the field."""
    return _spoken(body, _messages(body), intake)[0]


def read_completion(body: Body, intake: Intake, defaults: SamplingParams) -> Ask:
    """A body of /v1/completions, with one prompt or several. Raises Refused naming the field."""
    unknown = _screen(body, COMPLETION)
    prompts = _prompts(body.get("prompt"))
    special = switch(body, "add_special_tokens", True)
    echo = switch(body, "echo")
    logprobs = body.get("logprobs")
    if isinstance(logprobs, bool):
        raise Refused(
            f"logprobs is {logprobs}; expected how many likely tokens to show, a whole number",
            param="logprobs",
        )
    limit = _first(body, "max_tokens")
    scoring = echo and limit == 0
    if scoring:
        limit = 1
    more: dict[str, Any] = {"prompt_logprobs": logprobs} if echo and logprobs is not None else {}
    more["structured_outputs"] = _constraint(body, intake)
    ids = [tuple(_encoded(prompt, special, intake)) for prompt in prompts]
    return Ask(
        kind="completion",
        prompts=tuple(ids),
        params=_params(body, defaults, max_tokens=16 if limit is None else limit, logprobs=logprobs, **more),
        before=tuple(_text(p, i, intake) if echo else "" for p, i in zip(prompts, ids, strict=True)),
        echo=echo,
        scoring=scoring,
        logprobs=logprobs,
        unknown=unknown,
        **_shape(body),
    )


ROUTES = {"/v1/chat/completions": read_chat, "/v1/completions": read_completion}
"""Who reads the bodies of which address."""


def takes_long(body: Mapping[str, Any]) -> bool:
    """Whether reading the body may take seconds, because it asks for a form that must be tried out first."""
    return any(body.get(name) is not None for name in (*structured.FIELDS, "tools"))


# -- parts ----------------------------------------------------------------------------------------------------


def _screen(body: object, known: frozenset[str]) -> tuple[str, ...]:
    """Refuse what asks for something that we do not do; the names of fields that nobody knows."""
    if not isinstance(body, Mapping):
        raise Refused(f"the body is {_kind(body)}; expected an object", param="body")
    for name, (allowed, reason) in ONLY.items():
        given = body.get(name)
        if not any(
            given == value and isinstance(given, bool) == isinstance(value, bool) for value in allowed
        ):
            raise Refused(f"{name} is not supported here: {reason}", param=name, hint=f"leave {name} out")
    return tuple(str(name) for name in body if name not in known and name not in IGNORED and name not in ONLY)


def _params(body: Body, defaults: SamplingParams, **more: Any) -> SamplingParams:
    given = {name: body[name] for name in SAME if body.get(name) is not None}
    try:
        return msgspec.structs.replace(defaults, **{**given, **more})
    except Refused as fault:
        if fault.param != "max_tokens" or body.get("max_completion_tokens") is None:
            raise
        newer = "max_completion_tokens"
        raise Refused(fault.message.replace("max_tokens", newer, 1), param=newer, hint=fault.hint) from fault


def _constraint(body: Body, intake: Intake, voice: Voice | None = None) -> StructuredOutputsParams | None:
    """The form that an answer must have, found possible. Raises Refused naming the field that asks for it."""
    field, wanted = structured.read(body) or ("tools", None)
    try:
        if voice is None:
            return _possible(wanted, intake)
        tool_or_form = voice.constraint(intake.text_tokenizer, wanted)
        return _possible(behind_thoughts(tool_or_form, voice.formats.thinking, voice.begun), intake)
    except Refused as fault:
        if fault.param != "structured_outputs":
            raise
        if voice is not None and wanted is None and not any(tool.strict for tool in voice.tools):
            loose = tuple(msgspec.structs.replace(tool, parameters={}) for tool in voice.tools)
            if loose != voice.tools:  # nobody insists on schemas that llguidance has no grammar for
                return _constraint(body, intake, msgspec.structs.replace(voice, tools=loose))
        message = fault.message.replace("structured_outputs", field, 1)
        raise Refused(message, param=field, hint=fault.hint or None) from fault


def _possible(wanted: StructuredOutputsParams | None, intake: Intake) -> StructuredOutputsParams | None:
    if wanted is not None:
        intake.grammar(wanted)  # looks at it, and remembers what it found
    return wanted


def _shape(body: Body) -> dict[str, Any]:
    """What is the same for both kinds."""
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise Refused(f"stream_options is {_kind(options)}; expected an object", param="stream_options")
    stream = switch(body, "stream")
    if options and not stream:
        raise Refused(
            "stream_options is given without stream", param="stream_options", hint='set "stream": true'
        )
    priority = _PRIORITY("priority", body.get("priority"))
    limit = _LIMIT("timeout_ms", body.get("timeout_ms"))
    salt, model, name_of_it = body.get("cache_salt"), body.get("model"), body.get("request_id")
    for name, value in (("cache_salt", salt), ("model", model), ("request_id", name_of_it)):
        if value is not None and not isinstance(value, str):
            raise Refused(f"{name} is {_kind(value)}; expected text", param=name)
    if salt == "":
        raise Refused("cache_salt is empty; expected some text", param="cache_salt", hint="leave it out")
    return {
        "model": model or None,
        "salt": salt or "",
        "priority": priority or 0,
        "bare_ids": switch(body, "return_tokens_as_token_ids"),
        "show_ids": switch(body, "return_token_ids"),
        "stream": stream,
        "stream_options": {name: True for name in STREAM_OPTIONS if switch(options or {}, name)},
        "timeout_ms": limit,
        "timings": switch(body, "timings"),
        "request_id": name_of_it,
    }


def _chat_logprobs(body: Body, most: int) -> int | None:
    top = body.get("top_logprobs")
    if not switch(body, "logprobs"):
        if top:
            raise Refused(
                "top_logprobs is given without logprobs", param="top_logprobs", hint='set "logprobs": true'
            )
        return None
    if top is None:
        return 0
    if type(top) is not int or top < min(most, 0) or 0 <= most < top:
        expected = f"from 0 to {most}" if most >= 0 else "of at least -1"
        raise Refused(
            f"top_logprobs is {top!r:.60}; expected a whole number {expected}", param="top_logprobs"
        )
    return top


def _messages(body: Body) -> Sequence[Any]:
    messages = body.get("messages")
    if not _is_list(messages) or not messages:
        raise Refused("messages must be a list of at least one message", param="messages")
    return messages


def _spoken(
    body: Body, messages: Sequence[Any], intake: Intake, *, whole: bool = False
) -> tuple[list[int], Voice]:
    """The prompt that the messages make, and how to read the answer. `whole`: it is one that can be answered."""
    try:
        text, voice = _rendered(body, messages, intake)
        ids = intake.encode(text, add_special_tokens=bool(switch(body, "add_special_tokens")))
        return intake.ids(ids) if whole else ids, voice
    except Refused as fault:
        if fault.param == "prompt":  # a chat has no such field
            fault.param = "messages"
            fault.message = fault.message.replace("the prompt", "the prompt of messages", 1)
        raise


def _rendered(body: Body, messages: Sequence[Any], intake: Intake) -> tuple[str, Voice]:
    """The text of the prompt that the messages make, and how to read the answer."""
    tokenizer = intake.text_tokenizer
    template, formats, box = tokenizer.chat_template(), tokenizer.formats, read_tools(body)
    more = body.get("chat_template_kwargs")
    if more is not None and not isinstance(more, Mapping):
        raise Refused(
            f"chat_template_kwargs is {_kind(more)}; expected an object", param="chat_template_kwargs"
        )
    continued = bool(switch(body, "continue_final_message"))
    text = template.render(
        messages_for(template, formats, messages),
        add_generation_prompt=switch(body, "add_generation_prompt", None),
        tools=box.specs,
        continue_final_message=continued,
        documents=body.get("documents"),
        chat_template_kwargs=effort(body) | dict(more or {}),
    )
    return text, read_voice(body, box, formats, text, continued)


def _prompts(given: object) -> list[str | list[Any]]:
    """One or many: text, texts, token ids, or lists of token ids."""
    if isinstance(given, str):
        return [given]
    if not _is_list(given) or not given:
        raise Refused(
            f"prompt is {_kind(given)}; expected text, a list of token ids, or a list of such", param="prompt"
        )
    if all(isinstance(item, int) for item in given):
        return [list(given)]
    if all(isinstance(item, str) for item in given) or all(_is_list(item) for item in given):
        return list(given)
    raise Refused("prompt is a list of different things; expected all texts or all token ids", param="prompt")


def _encoded(prompt: str | list[Any], special: bool, intake: Intake) -> list[int]:
    if isinstance(prompt, str):
        return intake.ids(intake.encode(prompt, add_special_tokens=special))
    return intake.ids(prompt)


def _text(prompt: str | list[Any], ids: Sequence[int], intake: Intake) -> str:
    if isinstance(prompt, str):
        return prompt
    return intake.tokenizer.decode(ids, skip_special_tokens=False) if intake.tokenizer is not None else ""


def _first(body: Body, *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _kind(value: object) -> str:
    names = {
        str: "text",
        list: "a list",
        dict: "an object",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "missing" if value is None else names.get(type(value), type(value).__name__)
