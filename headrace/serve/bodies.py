"""What /openapi.json says of bodies; for documents only: they are read by engine/dialect.py."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
INT64 = 2**63 - 1


class Open(BaseModel):
    """Further fields are allowed: clients add some, and so do we."""

    model_config = ConfigDict(extra="allow")


def field(description: str, default: Any = None, **bounds: Any) -> Any:
    """A field that may be left out, or null, which is the same."""
    return Field(default, description=description, **bounds)


class StreamOptions(Open):
    include_usage: bool | None = field("a last chunk with the usage")
    continuous_usage_stats: bool | None = field("usage in every chunk")


class Sampling(Open):
    """What both kinds of generation take. Defaults are the model's own; `null` is the same as leaving a field out."""

    model: str | None = field("one of the names of /v1/models; may be left out", max_length=512)
    n: int | None = field("answers wanted; more than 1 needs a temperature above 0", ge=1, le=1024)
    temperature: float | None = field("0: always the likeliest token", ge=0, le=2)
    top_p: float | None = field(
        "sample from the likeliest tokens that together have this probability", gt=0, le=1
    )
    top_k: int | None = field("sample from so many likeliest tokens; 0 or -1: all", ge=-1, le=INT64)
    min_p: float | None = field("drop tokens less probable than this times the likeliest one", ge=0, le=1)
    presence_penalty: float | None = field("subtracted from tokens that were generated before", ge=-2, le=2)
    frequency_penalty: float | None = field("the same, once per occurrence", ge=-2, le=2)
    repetition_penalty: float | None = field("divides the logits of tokens that were there before", gt=0)
    seed: int | None = field("the same seed gives the same tokens", ge=-INT64, le=INT64)
    stop: str | list[str] | None = field("strings that end the answer, 64 at most")
    stop_token_ids: list[int] | None = field("tokens that end the answer", max_length=1024)
    bad_words: list[str] | None = field("strings that the answer never completes", max_length=128)
    include_stop_str_in_output: bool | None = field("keep the stop string in the text")
    ignore_eos: bool | None = field("go on after the end-of-sequence token")
    min_tokens: int | None = field("no end before so many tokens", ge=0, le=INT64)
    max_tokens: int | None = field("longest answer in tokens", ge=0, le=INT64)
    prompt_logprobs: int | None = field(
        "log-probabilities of the prompt's tokens, with so many rivals", ge=-1, le=20
    )
    skip_special_tokens: bool | None = field("leave special tokens out of the text")
    spaces_between_special_tokens: bool | None = field("without effect with these tokenizers")
    logit_bias: dict[str, float] | None = field("token id -> number added to its logit, -100 to 100")
    allowed_token_ids: list[int] | None = field("the only tokens that may be generated")
    stream: bool | None = field("send server-sent events as tokens come")
    stream_options: StreamOptions | None = field("only with stream")
    echo: bool | None = field("repeat the prompt (chat: the message that is continued) in the reply")
    add_special_tokens: bool | None = field("let the tokenizer add its own; completions: true, chat: false")
    cache_salt: str | None = field(
        "requests with different salts share no cached prefix", min_length=1, max_length=512
    )
    priority: int | None = field("lower runs earlier, with --schedule.policy priority", ge=-INT64, le=INT64)
    return_token_ids: bool | None = field("token ids beside the text")
    return_tokens_as_token_ids: bool | None = field('tokens in log-probabilities as "token_id:N"')
    timeout_ms: int | None = field("how long the whole answer may take", ge=1, le=INT64)
    timings: bool | None = field("the reply says how long its parts took")
    request_id: str | None = field(
        "the client's name for the request, like the header X-Request-Id", max_length=256
    )
    response_format: Json | None = field(
        'the form of the answer: {"type": "json_schema", "json_schema": {...}}'
    )
    structured_outputs: Json | None = field(
        "the form of the answer: json, json_object, regex, choice or grammar"
    )
    guided_json: Json | str | None = field("old name of structured_outputs.json")
    guided_json_object: bool | None = field("old name of structured_outputs.json_object")
    guided_regex: str | None = field("old name of structured_outputs.regex")
    guided_choice: list[str] | None = field("old name of structured_outputs.choice")
    guided_grammar: str | None = field("old name of structured_outputs.grammar")
    guided_whitespace_pattern: str | None = field("white space between the parts of JSON")


class TextPart(Open):
    type: Literal["text"]
    text: str


class ChatMessage(Open):
    role: Literal["system", "developer", "user", "assistant", "tool"] = field("who said it", ...)
    content: str | list[TextPart] | None = field("what was said: text, or parts of it", ...)


class ChatRequest(Sampling):
    """A body of /v1/chat/completions."""

    messages: list[ChatMessage] = field("the conversation", ..., min_length=1)
    max_completion_tokens: int | None = field(
        "longest answer in tokens; stands above max_tokens", ge=1, le=INT64
    )
    logprobs: bool | None = field("log-probabilities of the answer's tokens")
    top_logprobs: int | None = field("so many likeliest tokens per position; needs logprobs", ge=0, le=20)
    tools: list[Json] | None = field("functions the model may call")
    tool_choice: str | Json | None = field("none, auto, required, or a function by name")
    parallel_tool_calls: bool | None = field("more than one call in an answer")
    include_reasoning: bool | None = field("thoughts are part of the reply")
    add_generation_prompt: bool | None = field("end the prompt where the assistant begins")
    continue_final_message: bool | None = field("go on with the last message instead of beginning a new one")
    documents: list[Json] | None = field("documents for the template")
    chat_template_kwargs: Json | None = field("further variables of the template")
    reasoning_effort: str | None = field("a variable of the template")


class CompletionRequest(Sampling):
    """A body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = field(
        "text, texts, token ids, or lists of those", ...
    )
    logprobs: int | None = field("log-probabilities, with so many likeliest tokens", ge=0, le=20)


class TokenizeRequest(Open):
    """A body of /tokenize: a prompt, or messages."""

    model: str | None = field("one of the names of /v1/models", max_length=512)
    prompt: str | None = field("text")
    messages: list[ChatMessage] | None = field("instead of a prompt", min_length=1)
    add_special_tokens: bool | None = field("let the tokenizer add its own")
    add_generation_prompt: bool | None = field("with messages: end where the assistant begins")
    continue_final_message: bool | None = field("with messages: go on with the last one")
    chat_template_kwargs: Json | None = field("with messages: further variables of the template")
    return_token_strs: bool | None = field("the tokens as the vocabulary spells them")


class DetokenizeRequest(Open):
    """A body of /detokenize."""

    model: str | None = field("one of the names of /v1/models", max_length=512)
    tokens: list[int] = field("token ids", ...)


class Format(Open):
    type: Literal["text", "json_object", "json_schema"] = field("the form of the answer", ...)
    name: str | None = field("with json_schema: what it is called")
    schema_: Json | None = Field(None, alias="schema", description="with json_schema: the schema")
    strict: bool | None = field("without effect: schemas are always followed")


class TextForm(Open):
    format: Format | None = field("text, or JSON")
    verbosity: str | None = field("without effect")


class Reasoning(Open):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = field(
        "how much to think"
    )
    summary: str | None = field("without effect: thoughts are shown as they are")


class ResponseRequest(Open):
    """A body of /v1/responses. It may have what a chat has for sampling, too."""

    model: str | None = field("one of the names of /v1/models; may be left out", max_length=512)
    input: str | list[Json] = field("text, or items: messages, calls, outputs of calls, thoughts", ...)
    instructions: str | None = field("said before everything else; not carried over to the next response")
    previous_response_id: str | None = field("the response that this one goes on from")
    max_output_tokens: int | None = field("longest answer in tokens, thoughts included", ge=1, le=INT64)
    text: TextForm | None = field("the form of the answer")
    reasoning: Reasoning | None = field("how much to think")
    tools: list[Json] | None = field("functions the model may call, or tools that take plain text (custom)")
    tool_choice: str | Json | None = field("none, auto, required, a function by name, or allowed_tools")
    parallel_tool_calls: bool | None = field("more than one call in an answer")
    temperature: float | None = field("0: always the likeliest token", ge=0, le=2)
    top_p: float | None = field(
        "sample from the likeliest tokens that together have this probability", gt=0, le=1
    )
    top_logprobs: int | None = field("so many likeliest tokens per position", ge=0, le=20)
    include: list[str] | None = field("message.output_text.logprobs; others are without effect")
    stream: bool | None = field("send named server-sent events as tokens come")
    stream_options: Json | None = field("without effect")
    store: bool | None = field(
        "keep the response for a while, to be fetched or gone on from; true by default"
    )
    background: bool | None = field("answer at once; the response is to be fetched")
    metadata: dict[str, str] | None = field("repeated in the response", max_length=16)
    truncation: Literal["disabled"] | None = field("prompts are never cut")
    conversation: None = field("not supported")
    prompt: None = field("not supported")


BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    ResponseRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
