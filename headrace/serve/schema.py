"""What /openapi.json says of replies, and how a route is described; for documents only."""

from typing import Any, Literal

from pydantic import BaseModel, RootModel

from headrace.engine.dialect import IGNORED
from headrace.serve.bodies import BODIES, Open, Sampling

Json = dict[str, Any]


class ErrorSaid(Open):
    message: str
    type: str
    param: str | None
    code: int | str


class Error(Open):
    """What went wrong."""

    error: ErrorSaid


class PromptTokens(Open):
    cached_tokens: int


class Usage(Open):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Message(Open):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None


class Choice(Open):
    index: int
    logprobs: Json | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChatChoice(Choice):
    message: Message


class ChatReply(Open):
    """A message of the assistant."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(Choice):
    text: str


class CompletionReply(Open):
    """Texts that go on from the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ResponseReply(Open):
    """A response: its status, and the items of its output."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[Json]
    error: Json | None
    incomplete_details: Json | None
    usage: Json | None


class Items(Open):
    """The input items of a response."""

    object: Literal["list"]
    data: list[Json]
    has_more: bool


class Deleted(Open):
    """The response was forgotten."""

    id: str
    object: Literal["response"]
    deleted: bool


class Model(Open):
    """A model that may be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(Open):
    """The models that may be asked for."""

    object: Literal["list"]
    data: list[Model]


class Tokens(Open):
    """Token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Open):
    """Text of token ids."""

    prompt: str


class TokenizerFacts(Open):
    """Special tokens and chat template."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


class Rendered(Open):
    """What the engine would be given."""

    request_id: str
    token_ids: list[int]
    features: Json | None
    prompt: str | None


class RenderedList(RootModel[list[Rendered]]):
    """What the engine would be given, per prompt."""


class Version(Open):
    """The version."""

    version: str


class Load(Open):
    """How many requests are being answered."""

    server_load: int


ALWAYS = (401, 403, 429, 500, 503)
"""What any path may answer: keys, the host's name, overload, bugs, and that the engine is not there."""


OF_A_BODY = (400, 404, 408, 413)
"""What a path that reads a body may answer besides."""


def route(
    tag: str, model: type[BaseModel] | None, *statuses: int, body: str = "", stream: bool = False
) -> Json:
    """What the document says of a route, as keyword arguments of its registration.

    model      of the reply with 200; every other status has the error object
    statuses   it may answer besides ALWAYS and, with a body, OF_A_BODY
    body       the schema of its body        stream    it may answer with server-sent events
    """
    good: Json = {"description": "done"}
    if model is not None:
        good = {"model": model, "description": (model.__doc__ or "").strip()}
    if stream:
        parts = {"event": {"type": "string"}, "data": {"type": "string"}}
        good["content"] = {"text/event-stream": {"schema": {"type": "object", "properties": parts}}}
    replies: dict[int | str, Json] = {200: good}
    for status in sorted({*statuses, *ALWAYS, *(OF_A_BODY if body else ())}):
        replies[status] = {"model": Error, "description": "refused" if status < 500 else "not possible now"}
    said: Json = {"tags": [tag], "responses": replies}
    if body:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
        said["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return said


def complete(document: Json, keys: bool) -> Json:
    """The document with the bodies, which no route declares, in its components, and how keys are sent."""
    parts = document.setdefault("components", {})
    if keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    known = parts.setdefault("schemas", {})
    for model in BODIES:
        made = model.model_json_schema(ref_template="#/components/schemas/{model}")
        known |= made.pop("$defs", {})
        if issubclass(model, Sampling):
            made["properties"] |= {name: {"description": "ignored"} for name in sorted(IGNORED)}
        known[model.__name__] = made
    return document
