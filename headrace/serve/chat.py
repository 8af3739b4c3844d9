"""/v1/chat/completions: how its streams are written."""

from typing import assert_never

from headrace.engine.dialect import read_chat
from headrace.engine.intake import Intake
from headrace.engine.reply import Json, chat_logprob, ending
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.ask import Asked, Offer
from headrace.serve.chunks import Chunks
from headrace.serve.sse import Updates, encode
from headrace.text.parts import CallArguments, CallStart, Content, Part, Thought
from headrace.text.speech import Speech, parts_of


class ChatFrames(Chunks):
    """Chunks of chat.completion. The usual one is three pieces of bytes; the others are made like a reply.

    The role comes with the first token, not before: its time is what benchmarks take for the time to the first
    token.
    """

    def __init__(self, asked: Asked, answer: Answer, intake: Intake):
        super().__init__(asked, answer, intake, "chat.completion.chunk")
        self.speeches: list[Speech | None] = [asked.ask.speech() for _ in answer.streams]
        self.called = [False] * len(answer.streams)
        self._heads = [part + b'"delta":' for part in self._heads]
        self._contents = [part + b'{"content":' for part in self._heads]
        self._tail = b',"logprobs":null,"finish_reason":null}' + self._close

    def push(self, updates: Updates) -> bytes:
        out: list[bytes] = []
        for i, update in updates:
            if not self._plain or update.finish or not self._begun[i]:
                out.append(self._chunk(i, update))
            elif not update.text:
                pass
            elif (speech := self.speeches[i]) is None:
                out += (self._contents[i], encode(update.text), b"}", self._tail)
            else:
                for part in speech.push(update.text):
                    out += (self._heads[i], self._delta(i, part), self._tail)
        return b"".join(out)

    def _chunk(self, i: int, update: Update) -> bytes:
        """The first chunk of a choice, the last, or one with more than text; several where parts change."""
        first, self._begun[i] = not self._begun[i], True
        parts = parts_of(self.speeches[i], update.text, update.finish is not None)
        if first and self.ask.before[0]:
            parts.insert(0, Content(self.ask.before[0]))
        if not (first or parts or update.finish or self.ask.show_ids or self.ask.logprobs is not None):
            return b""
        deltas = [self._delta(i, part) for part in parts] or [b"{}"]
        if first:
            deltas[0] = _with_role(deltas[0])
        *before, last = deltas
        out = [piece for delta in before for piece in (self._heads[i], delta, self._tail)]
        return b"".join([*out, self._heads[i], last, b",", self._rest(i, update, first)])

    def _delta(self, i: int, part: Part) -> bytes:
        match part:
            case Content(text):
                return b'{"content":' + encode(text) + b"}"
            case Thought(text):
                said = encode(text)
                return b'{"reasoning":' + said + b',"reasoning_content":' + said + b"}"
            case CallStart(index, id, name):
                self.called[i] = True
                function = {"name": name, "arguments": ""}
                return encode(
                    {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}
                )
            case CallArguments(index, text):
                return encode({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            case _:
                assert_never(part)

    def _rest(self, i: int, update: Update, first: bool) -> bytes:
        """What follows the delta."""
        ask, stream = self.ask, self.answer.streams[i]
        choice: Json = {"logprobs": None, "finish_reason": None}
        if ask.logprobs is not None and update.logprobs is not None:
            token, found = update.token_ids[0], update.logprobs
            choice["logprobs"] = {"content": [chat_logprob(token, found, ask.logprobs, self.spell)]}
        if update.finish:
            choice |= ending(ask, stream, self.spell)
            if self.called[i] and choice["finish_reason"] == "stop":
                choice["finish_reason"] = "tool_calls"
        if ask.show_ids:
            choice["token_ids"] = list(update.token_ids)
            choice["prompt_token_ids"] = list(stream.request.prompt) if first else None
        return self._closed(choice)


def _with_role(delta: bytes) -> bytes:
    """The first delta of a choice; content, if only empty, is always part of it."""
    role = b'{"role":"assistant",'
    if delta.startswith(b'{"content":'):
        return role + delta[1:]
    return role + b'"content":""' + (b"}" if delta == b"{}" else b"," + delta[1:])


CHAT = Offer("chat", read_chat, ChatFrames)
