"""The OpenAI dialect from the client's side: bodies that ask, chunks that answer."""

from typing import Any, Literal

import msgspec

from headrace.bench.serve.http import Malformed

Endpoint = Literal["chat", "completions"]
PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None

    @property
    def text(self) -> str:
        """What was generated: content, reasoning, or a tool call's parts."""
        found = (self.content or "") + (self.reasoning_content or self.reasoning or "")
        for call in self.tool_calls or ():
            if call.function is not None:
                found += (call.function.name or "") + (call.function.arguments or "")
        return found


class Choice(msgspec.Struct):
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> str:
        """The text, whichever way it came."""
        part = self.delta or self.message
        return part.text if part is not None else self.text or ""


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Chunk(msgspec.Struct):
    """A frame of a stream, or a whole answer."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(Chunk).decode


def read(frame: bytes) -> Chunk:
    """Raises Malformed for what is not a chunk."""
    try:
        return _chunk(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Malformed(f"a frame is no chunk of an answer: {str(fault)[:80]}") from fault


def said_by(error: bytes) -> str:
    """The message of an error body, as far as it has one."""
    try:
        found: Any = msgspec.json.decode(error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return error[:120].decode("utf-8", "replace")
    while isinstance(found, dict) and "error" in found:
        found = found["error"]
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail") or found
    return str(found)[:200]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What every request of a run has in common."""

    endpoint: Endpoint = "chat"
    model: str = ""
    stream: bool = True
    ignore_eos: bool = True
    temperature: float | None = 0.0
    extra: dict[str, Any] = {}

    def body(self, prompt: str | list[int] | list[dict[str, Any]], max_tokens: int | None) -> bytes:
        """The JSON of one request. A text becomes a user's message where the endpoint is chat."""
        said: dict[str, Any] = {"model": self.model}
        if self.endpoint == "chat":
            said["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        else:
            said["prompt"] = prompt
        if max_tokens is not None:
            said["max_tokens"] = max_tokens
        if self.temperature is not None:
            said["temperature"] = self.temperature
        if self.ignore_eos:
            said["ignore_eos"] = True
        if self.stream:
            said["stream"] = True
            said["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return msgspec.json.encode(said | self.extra)
