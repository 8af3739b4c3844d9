"""What the engine answered into OpenAI response and error objects; torch-free."""

from collections.abc import Sequence
from typing import Any

from headrace.base.errors import Fault
from headrace.engine.dialect import Ask
from headrace.engine.request import Logprobs
from headrace.engine.stream import Stream
from headrace.text.tokenizer import Tokenizer

Json = dict[str, Any]

# The names that clients of this dialect know, by HTTP status.
ERROR_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


def error(fault: Fault) -> Json:
    """The error object of a fault; what to do is part of the message, for there is no other place for it."""
    message = f"{fault.message} ({fault.hint})" if fault.hint else fault.message
    kind = ERROR_TYPES.get(fault.status, "InternalServerError")
    return {"message": message, "type": kind, "param": fault.param, "code": fault.status}


def reply(
    ask: Ask, id: str, created: int, model: str, streams: Sequence[Stream], tokenizer: Tokenizer | None
) -> Json:
    """The response to `ask`, of which `streams` are the answers: all of the first prompt, then all of the second...

    `created` in seconds since 1970.
    """
    spell = _Spelling(ask, tokenizer)
    choose = _chat_choice if ask.kind == "chat" else _completion_choice
    each = len(streams) // len(ask.prompts)
    return {
        "id": id,
        "object": "chat.completion" if ask.kind == "chat" else "text_completion",
        "created": created,
        "model": model,
        "choices": [choose(ask, i, ask.before[i // each], s, spell) for i, s in enumerate(streams)],
        "usage": usage(ask, streams),
    }


def usage(ask: Ask, streams: Sequence[Stream]) -> Json:
    """Tokens read, of these from the prefix cache, and written. A prompt with several answers was read once."""
    each = len(streams) // len(ask.prompts)
    prompt = sum(map(len, ask.prompts))
    written = 0 if ask.scoring else sum(len(stream.token_ids) for stream in streams)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(stream.cached for stream in streams[::each])},
    }


class _Spelling:
    """How tokens are written in log-probabilities."""

    def __init__(self, ask: Ask, tokenizer: Tokenizer | None):
        self.tokenizer = None if ask.bare_ids else tokenizer

    def text(self, token: int) -> str:
        if self.tokenizer is None:
            return f"token_id:{token}"
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def octets(self, token: int) -> list[int]:
        """Bytes, because a token may be half a character."""
        return list(
            self.text(token).encode() if self.tokenizer is None else self.tokenizer.token_bytes(token)
        )


def _chat_choice(ask: Ask, index: int, before: str, stream: Stream, spell: _Spelling) -> Json:
    logprobs = None
    if ask.logprobs is not None:
        pairs = zip(stream.token_ids, stream.logprobs, strict=True)
        logprobs = {"content": [_chat_logprob(token, found, ask.logprobs, spell) for token, found in pairs]}
    message = {"role": "assistant", "content": before + stream.text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs} | _ending(ask, stream, spell)


def _chat_logprob(token: int, found: Logprobs, most: int, spell: _Spelling) -> Json:
    def entry(token: int, logprob: float) -> Json:
        return {"token": spell.text(token), "logprob": _number(logprob), "bytes": spell.octets(token)}

    top = found.top if most < 0 else found.top[:most]
    return entry(token, found.logprob) | {"top_logprobs": [entry(*one) for one in top]}


def _completion_choice(ask: Ask, index: int, before: str, stream: Stream, spell: _Spelling) -> Json:
    text = before + ("" if ask.scoring else stream.text)
    logprobs = _completion_logprobs(ask, stream, spell) if ask.logprobs is not None else None
    return {"index": index, "text": text, "logprobs": logprobs} | _ending(ask, stream, spell)


def _completion_logprobs(ask: Ask, stream: Stream, spell: _Spelling) -> Json:
    tokens: list[int] = []
    found: list[Logprobs | None] = []
    if ask.echo:
        tokens += stream.request.prompt
        found += [None, *stream.prompt_logprobs]
    if not ask.scoring:
        tokens += stream.token_ids
        found += stream.logprobs
    texts = [spell.text(token) for token in tokens]
    offsets = [0]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "text_offset": offsets[: len(texts)],
        "token_logprobs": [_number(one.logprob) if one else None for one in found],
        "tokens": texts,
        "top_logprobs": [
            _likely(token, one, spell) if one else None for token, one in zip(tokens, found, strict=True)
        ],
    }


def _likely(token: int, found: Logprobs, spell: _Spelling) -> dict[str, float]:
    """The likeliest tokens, and the one that is there."""
    return {spell.text(id): _number(logprob) for id, logprob in [*found.top, (token, found.logprob)]}


def _ending(ask: Ask, stream: Stream, spell: _Spelling) -> Json:
    """What both kinds of choice end with."""
    end: Json = {
        "finish_reason": "length" if ask.scoring else stream.finish,
        "stop_reason": _stopped_by(stream),
    }
    if ask.params.prompt_logprobs is not None:
        shown = zip(stream.request.prompt[1:], stream.prompt_logprobs, strict=True)
        end["prompt_logprobs"] = [None, *(_table(token, found, spell) for token, found in shown)]
    if ask.show_ids:
        end["token_ids"] = [] if ask.scoring else list(stream.token_ids)
        end["prompt_token_ids"] = list(stream.request.prompt)
    return end


def _stopped_by(stream: Stream) -> int | str | None:
    """The stop string or token that the request named. The model's own end of sequence is not told."""
    own = stream.stop in stream.request.eos_ids and stream.stop not in stream.request.params.stop_token_ids
    return None if own else stream.stop


def _table(token: int, found: Logprobs, spell: _Spelling) -> Json:
    """Token id -> log-probability, rank and text, as vLLM gives it for prompts."""
    ranked = [(id, logprob, rank) for rank, (id, logprob) in enumerate(found.top, 1)]
    return {
        str(id): {"logprob": _number(logprob), "rank": rank, "decoded_token": spell.text(id)}
        for id, logprob, rank in [*ranked, (token, found.logprob, found.rank)]
    }


def _number(logprob: float) -> float:
    """JSON has no infinity; this is what the dialect writes for a token that was impossible."""
    return max(logprob, -9999.0)
