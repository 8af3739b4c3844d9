"""What the engine answered into OpenAI response and error objects; torch-free."""

from collections.abc import Sequence
from typing import Any

from headrace.base.errors import Fault
from headrace.engine.calling import Voice
from headrace.engine.dialect import Ask
from headrace.engine.request import Logprobs
from headrace.engine.stream import Stream
from headrace.text.parts import Said
from headrace.text.tokenizer import Tokenizer

Json = dict[str, Any]

# The names that clients of this dialect know, by HTTP status.
ERROR_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
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
    spell = Spelling(ask, tokenizer)
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
    counts: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(stream.cached for stream in streams[::each])},
    }
    if ask.voice is not None:
        thoughts = sum(_thoughts(ask.voice, stream) for stream in streams)
        counts["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return counts


def _thoughts(voice: Voice, stream: Stream) -> int:
    if stream.listener is None:
        stream.listener = voice.listener()
    return stream.thoughts()


class Spelling:
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


def _chat_choice(ask: Ask, index: int, before: str, stream: Stream, spell: Spelling) -> Json:
    logprobs = None
    if ask.logprobs is not None:
        pairs = zip(stream.token_ids, stream.logprobs, strict=True)
        logprobs = {"content": [chat_logprob(token, found, ask.logprobs, spell) for token, found in pairs]}
    speech = ask.speech()
    said = speech.whole(stream.text) if speech is not None else Said(stream.text)
    message = _message(ask, before, said)
    choice = {"index": index, "message": message, "logprobs": logprobs} | ending(ask, stream, spell)
    if said.calls and choice["finish_reason"] == "stop":
        choice["finish_reason"] = "tool_calls"
    return choice


def _message(ask: Ask, before: str, said: Said) -> Json:
    content = before + (said.content or "")
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if not content and (said.calls or said.thought is not None):
        message["content"] = None
    if said.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.calls
        ]
    if ask.voice is not None and ask.voice.formats.thinking is not None:
        # The field's old name is the one that most clients still read.
        message["reasoning"] = message["reasoning_content"] = said.thought
    return message


def chat_logprob(token: int, found: Logprobs, most: int, spell: Spelling) -> Json:
    """One token of a message with its log-probability and its `most` likeliest rivals; -1: all there are."""

    def entry(token: int, logprob: float) -> Json:
        return {"token": spell.text(token), "logprob": number(logprob), "bytes": spell.octets(token)}

    top = found.top if most < 0 else found.top[:most]
    return entry(token, found.logprob) | {"top_logprobs": [entry(*one) for one in top]}


def _completion_choice(ask: Ask, index: int, before: str, stream: Stream, spell: Spelling) -> Json:
    text = before + ("" if ask.scoring else stream.text)
    logprobs = None
    if ask.logprobs is not None:
        before_it, its_own = scored_prompt(ask, stream), not ask.scoring
        tokens = [*before_it[0], *(stream.token_ids if its_own else ())]
        found = [*before_it[1], *(stream.logprobs if its_own else ())]
        logprobs = completion_logprobs(tokens, found, spell)
    return {"index": index, "text": text, "logprobs": logprobs} | ending(ask, stream, spell)


def scored_prompt(ask: Ask, stream: Stream) -> tuple[Sequence[int], Sequence[Logprobs | None]]:
    """The prompt's tokens with their log-probabilities, where the completion repeats it."""
    return (stream.request.prompt, [None, *stream.prompt_logprobs]) if ask.echo else ((), ())


def completion_logprobs(
    tokens: Sequence[int], found: Sequence[Logprobs | None], spell: Spelling, offset: int = 0
) -> Json:
    """Tokens of a completion with their log-probabilities; the text of the first begins at `offset`."""
    texts = [spell.text(token) for token in tokens]
    offsets = [offset]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "text_offset": offsets[: len(texts)],
        "token_logprobs": [number(one.logprob) if one else None for one in found],
        "tokens": texts,
        "top_logprobs": [
            likely(token, one, spell) if one else None for token, one in zip(tokens, found, strict=True)
        ],
    }


def likely(token: int, found: Logprobs, spell: Spelling) -> dict[str, float]:
    """The likeliest tokens, and the one that is there."""
    return {spell.text(id): number(logprob) for id, logprob in [*found.top, (token, found.logprob)]}


def ending(ask: Ask, stream: Stream, spell: Spelling) -> Json:
    """What both kinds of choice end with."""
    end: Json = {
        "finish_reason": "length" if ask.scoring else stream.finish,
        "stop_reason": stopped_by(stream),
    }
    if ask.params.prompt_logprobs is not None:
        shown = zip(stream.request.prompt[1:], stream.prompt_logprobs, strict=True)
        end["prompt_logprobs"] = [None, *(_table(token, found, spell) for token, found in shown)]
    if ask.show_ids:
        end["token_ids"] = [] if ask.scoring else list(stream.token_ids)
        end["prompt_token_ids"] = list(stream.request.prompt)
    return end


def stopped_by(stream: Stream) -> int | str | None:
    """The stop string or token that the request named. The model's own end of sequence is not told."""
    own = stream.stop in stream.request.eos_ids and stream.stop not in stream.request.params.stop_token_ids
    return None if own else stream.stop


def _table(token: int, found: Logprobs, spell: Spelling) -> Json:
    """Token id -> log-probability, rank and text, as vLLM gives it for prompts."""
    ranked = [(id, logprob, rank) for rank, (id, logprob) in enumerate(found.top, 1)]
    return {
        str(id): {"logprob": number(logprob), "rank": rank, "decoded_token": spell.text(id)}
        for id, logprob, rank in [*ranked, (token, found.logprob, found.rank)]
    }


def number(logprob: float) -> float:
    """JSON has no infinity; this is what the dialect writes for a token that was impossible."""
    return max(logprob, -9999.0)
