"""/v1/completions: how its streams are written."""

from headrace.engine.dialect import read_completion
from headrace.engine.intake import Intake
from headrace.engine.reply import Json, completion_logprobs, ending, scored_prompt
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.ask import Asked, Offer
from headrace.serve.chunks import Chunks
from headrace.serve.sse import Updates, encode


class CompletionFrames(Chunks):
    """Chunks of text_completion. The usual one is three pieces of bytes; the others are made like a reply."""

    def __init__(self, asked: Asked, answer: Answer, intake: Intake):
        super().__init__(asked, answer, intake, "text_completion")
        self.each = len(answer.streams) // len(asked.ask.prompts)
        self._heads = [part + b'"text":' for part in self._heads]
        self._tail = b',"logprobs":null,"finish_reason":null,"stop_reason":null}' + self._close
        self._offsets = [0] * len(answer.streams)

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
        return self._heads[i] + encode(text) + b"," + self._closed(choice)

    def _logprobs(self, i: int, update: Update, first: bool) -> Json:
        ask, stream = self.ask, self.answer.streams[i]
        before = scored_prompt(ask, stream) if first else ((), ())
        own = not ask.scoring and update.logprobs is not None
        tokens = [*before[0], *(update.token_ids if own else ())]
        found = [*before[1], *([update.logprobs] if own else ())]
        made = completion_logprobs(tokens, found, self.spell, self._offsets[i])
        self._offsets[i] += sum(map(len, made["tokens"]))
        return made


COMPLETIONS = Offer("completion", read_completion, CompletionFrames)
