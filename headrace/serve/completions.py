"""/v1/completions: how its streams are written."""

from headrace.base.errors import Fault
from headrace.engine.dialect import read_completion
from headrace.engine.intake import Intake
from headrace.engine.reply import Json, Spelling, completion_logprobs, ending, scored_prompt, usage
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.ask import Asked, Offer, timings
from headrace.serve.sse import DONE, Updates, encode, error_event, event


class CompletionFrames:
    """Chunks of text_completion. The usual one is three pieces of bytes; the others are made like a reply."""

    def __init__(self, asked: Asked, answer: Answer, intake: Intake):
        self.asked, self.ask, self.answer = asked, asked.ask, answer
        ask, count = asked.ask, len(answer.streams)
        self.spell = Spelling(ask, intake.tokenizer)
        self.each = count // len(ask.prompts)
        head = b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":[{"index":' % (
            encode(asked.id),
            asked.created,
            encode(asked.model),
        )
        self._heads = [head + b'%d,"text":' % i for i in range(count)]
        options = ask.stream_options
        self._counting = "continuous_usage_stats" in options
        self._usage = "include_usage" in options
        null = b',"usage":null' if self._usage else b""
        self._close = b"]" + null + b"}\n\n"
        self._tail = b',"logprobs":null,"finish_reason":null,"stop_reason":null}' + self._close
        self._begun = [False] * count
        self._plain = ask.logprobs is None and not ask.show_ids and not self._counting
        self._offsets = [0] * count

    def push(self, updates: Updates) -> bytes:
        out: list[bytes] = []
        for i, update in updates:
            if self._plain and not update.finish and self._begun[i]:
                if update.text:
                    out += (self._heads[i], encode(update.text), self._tail)
            elif chunk := self._chunk(i, update):
                out.append(chunk)
        return b"".join(out)

    def _chunk(self, i: int, update: Update) -> bytes:
        """The first chunk of a choice, the last, or one with more than text."""
        ask, stream = self.ask, self.answer.streams[i]
        first, self._begun[i] = not self._begun[i], True
        text = "" if ask.scoring else update.text
        if first and ask.echo:
            text = ask.before[i // self.each] + text
        if not (first or text or update.finish or ask.show_ids or ask.logprobs is not None):
            return b""
        choice: Json = {"logprobs": None, "finish_reason": None, "stop_reason": None}
        if ask.logprobs is not None:
            choice["logprobs"] = self._logprobs(i, update, first)
        if update.finish:
            choice |= ending(ask, stream, self.spell)
        if ask.show_ids:
            choice["token_ids"] = [] if ask.scoring else list(update.token_ids)
            choice["prompt_token_ids"] = list(stream.request.prompt) if first else None
        close = self._close
        if self._counting:
            close = b'],"usage":' + encode(usage(ask, self.answer.streams)) + b"}\n\n"
        return self._heads[i] + encode(text) + b"," + encode(choice)[1:] + close

    def _logprobs(self, i: int, update: Update, first: bool) -> Json:
        ask, stream = self.ask, self.answer.streams[i]
        before = scored_prompt(ask, stream) if first else ((), ())
        own = not ask.scoring and update.logprobs is not None
        tokens = [*before[0], *(update.token_ids if own else ())]
        found = [*before[1], *([update.logprobs] if own else ())]
        made = completion_logprobs(tokens, found, self.spell, self._offsets[i])
        self._offsets[i] += sum(map(len, made["tokens"]))
        return made

    def end(self) -> bytes:
        return closing(self.asked, self.answer, "text_completion", self._usage) + DONE

    def fail(self, fault: Fault) -> bytes:
        return error_event(fault) + DONE


def closing(asked: Asked, answer: Answer, kind: str, with_usage: bool) -> bytes:
    """The chunk without choices that ends a stream: usage and timings, where they were asked for."""
    if not with_usage and not asked.ask.timings:
        return b""
    chunk: Json = {
        "id": asked.id,
        "object": kind,
        "created": asked.created,
        "model": asked.model,
        "choices": [],
    }
    if with_usage:
        chunk["usage"] = usage(asked.ask, answer.streams)
    if asked.ask.timings:
        chunk["timings"] = timings(answer)
    return event(chunk)


COMPLETIONS = Offer("completion", read_completion, CompletionFrames)
