"""What streams of chats and of completions have in common: how a chunk begins and ends, and the last ones."""

from headrace.base.errors import Fault
from headrace.engine.intake import Intake
from headrace.engine.reply import Json, Spelling, usage
from headrace.serve.answer import Answer
from headrace.serve.ask import Asked, timings
from headrace.serve.sse import DONE, encode, error_event, event


class Chunks:
    """The bytes around what differs from chunk to chunk, made once. `kind` is the chunks' "object"."""

    def __init__(self, asked: Asked, answer: Answer, intake: Intake, kind: str):
        self.asked, self.ask, self.answer = asked, asked.ask, answer
        self.spell = Spelling(asked.ask, intake.tokenizer)
        self._common: Json = {
            "id": asked.id,
            "object": kind,
            "created": asked.created,
            "model": asked.model,
        }
        head, options = encode(self._common)[:-1] + b',"choices":[{"index":', asked.ask.stream_options
        count = len(answer.streams)
        self._heads = [b"data: " + head + b"%d," % i for i in range(count)]
        self._counting = "continuous_usage_stats" in options
        self._usage = "include_usage" in options
        self._close = b"]" + (b',"usage":null' if self._usage else b"") + b"}\n\n"
        self._begun = [False] * count
        self._plain = asked.ask.logprobs is None and not asked.ask.show_ids and not self._counting

    def end(self) -> bytes:
        """The chunk without choices, with usage and timings where they were asked for, and the end."""
        chunk = self._common | {"choices": []}
        if self._usage:
            chunk["usage"] = usage(self.ask, self.answer.streams)
        if self.ask.timings:
            chunk["timings"] = timings(self.answer)
        return (event(chunk) if self._usage or self.ask.timings else b"") + DONE

    def fail(self, fault: Fault) -> bytes:
        """The frame that tells of a fault, and the end."""
        return error_event(fault) + DONE

    def _closed(self, choice: Json) -> bytes:
        """The rest of a choice that has begun, and of its chunk."""
        close = self._close
        if self._counting:
            close = b'],"usage":' + encode(usage(self.ask, self.answer.streams)) + b"}\n\n"
        return encode(choice)[1:] + close
