"""What a request gives back, with the field names of vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.engine.request import Logprobs
from headrace.engine.stream import Stream
from headrace.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Logprob:
    """Log-probability of a token, its rank among all (1 is the likeliest), and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One answer. `finish_reason`: None while it runs, then stop, length, abort or error."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds on the monotonic clock."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """All answers to one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0
    lora_request: Any = None


def gathered(
    id: str, prompt: str | None, streams: Sequence[Stream], tokenizer: Tokenizer | None, finished: bool = True
) -> RequestOutput:
    """What the answers to one prompt have gathered so far."""
    first = streams[0]
    return RequestOutput(
        request_id=id,
        prompt=prompt,
        prompt_token_ids=list(first.request.prompt),
        outputs=[completion(i, stream, tokenizer) for i, stream in enumerate(streams)],
        finished=finished,
        prompt_logprobs=prompt_table(first, tokenizer),
        num_cached_tokens=first.cached,
    )


def completion(index: int, stream: Stream, tokenizer: Tokenizer | None) -> CompletionOutput:
    """The answer a stream has gathered so far."""
    logprobs = cumulative = None
    if stream.request.params.logprobs is not None:
        logprobs = [
            _table(token, found, tokenizer)
            for token, found in zip(stream.token_ids, stream.logprobs, strict=True)
        ]
        cumulative = sum(found.logprob for found in stream.logprobs)
    return CompletionOutput(
        index, stream.text, list(stream.token_ids), cumulative, logprobs, stream.finish, stream.stop
    )


def prompt_table(stream: Stream, tokenizer: Tokenizer | None) -> list[dict[int, Logprob] | None] | None:
    """Log-probabilities of the prompt's tokens; the first has none."""
    if stream.request.params.prompt_logprobs is None:
        return None
    found = zip(stream.request.prompt[1:], stream.prompt_logprobs, strict=False)
    return [None, *(_table(token, entry, tokenizer) for token, entry in found)]


def _table(token: int, found: Logprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    def text(id: int) -> str | None:
        return tokenizer.decode([id], skip_special_tokens=False) if tokenizer is not None else None

    table = {token: Logprob(found.logprob, found.rank, text(token))}
    for rank, (id, logprob) in enumerate(found.top, 1):
        if id != token:
            table[id] = Logprob(logprob, rank, text(id))
    return table
