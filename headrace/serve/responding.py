"""One response on its way: what it is like at any time, whole or as named events."""

from collections.abc import Callable, Iterator
from functools import partial
from time import time
from typing import Any

from headrace.base.errors import Fault
from headrace.engine.intake import Intake
from headrace.engine.reply import Spelling, chat_logprob, usage
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.ask import Asked
from headrace.serve.items import Chat, to_items, to_messages
from headrace.serve.output import EventWriter, Output
from headrace.serve.shelf import Kept
from headrace.serve.sse import Updates

Json = dict[str, Any]

ECHOED = {
    "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "previous_response_id": None,
    "prompt_cache_key": None, "safety_identifier": None, "user": None, "tool_choice": "auto", "tools": [],
    "top_logprobs": 0, "truncation": "disabled", "parallel_tool_calls": True, "metadata": {}, "background": False,
    "store": True, "service_tier": "default",
}  # fmt: skip
"""Fields of a response that repeat its body's, and what stands there otherwise."""

ENDS = {"stop": "completed", "length": "incomplete", "abort": "cancelled"}


class Responding:
    """Frames of a stream, and the response object. `kept` is told of the response once it has ended."""

    def __init__(
        self, body: Json, chat: Chat, asked: Asked, intake: Intake, kept: Callable[["Responding"], None]
    ):
        self.body, self.chat, self.asked, self.id = body, chat, asked, asked.id
        self.answer: Answer | None = None
        self.status = "in_progress"
        self.forgotten = False
        self.fault: Fault | None = None
        ask = asked.ask
        self._events = EventWriter(heard=ask.stream)
        score = partial(chat_logprob, most=ask.logprobs or 0, spell=Spelling(ask, intake.tokenizer))
        self._scored = chat.logprobs
        self._output = Output(ask.speech(), self._events, chat.custom, score if chat.logprobs else None)
        self._kept = kept
        self._begun = False
        self._ended: int | None = None

    # -- as a stream --------------------------------------------------------------------------------------------

    def push(self, updates: Updates) -> bytes:
        """Events for these updates, after those that begin every stream."""
        self._begin()
        for _, update in updates:
            self._output.push(update)
        return self._events.take()

    def end(self) -> bytes:
        """The events that end it."""
        self._begin()
        self._end(ENDS.get(self._stream.finish or "stop", "failed"))
        return self._events.take()

    def fail(self, fault: Fault) -> bytes:
        """The event that ends it with a fault."""
        self._begin()
        self.fault = fault
        self._end("failed")
        return self._events.take()

    # -- as a whole ---------------------------------------------------------------------------------------------

    def whole(self) -> Json:
        """The response of an answer that has ended."""
        for update in self._updates():
            self._output.push(update)
        self._end(ENDS.get(self._stream.finish or "stop", "failed"))
        return self.response()

    def response(self) -> Json:
        """The response as it is now."""
        body, ask = self.body, self.asked.ask
        reasoning, text = body.get("reasoning") or {}, body.get("text") or {}
        reasons = {"incomplete": "max_output_tokens"}
        incomplete = {"reason": reasons[self.status]} if self.status in reasons else None
        over = self.status not in ("queued", "in_progress")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.asked.created,
            "completed_at": self._ended if self.status == "completed" else None,
            "status": self.status,
            "error": described(self.fault) if self.fault is not None else None,
            "incomplete_details": incomplete,
            "model": self.asked.model,
            "output": self._output.items,
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity")},
            "temperature": ask.params.temperature,
            "top_p": ask.params.top_p,
            "presence_penalty": ask.params.presence_penalty,
            "frequency_penalty": ask.params.frequency_penalty,
            "usage": self._usage() if over and self.answer is not None else None,
        } | {name: other if body.get(name) is None else body[name] for name, other in ECHOED.items()}

    def kept(self) -> Kept:
        """What is known of it now: with the conversation including the answer, to go on from."""
        messages = [*self.chat.messages, *to_messages(self._output.items)]
        return Kept(self.response(), to_items(self.body.get("input")), messages)

    # -- parts --------------------------------------------------------------------------------------------------

    @property
    def _stream(self) -> Any:
        assert self.answer is not None
        return self.answer.streams[0]

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for name in ("response.created", "response.in_progress"):
                self._events.tell(name, response=self.response())

    def _end(self, status: str) -> None:
        self._output.close("completed" if status == "completed" else "incomplete")
        self.status, self._ended = status, int(time())
        # There is no event of the name "cancelled".
        name = "incomplete" if status == "cancelled" else status
        self._events.tell(f"response.{name}", response=self.response())
        self._kept(self)

    def _updates(self) -> Iterator[Update]:
        """All of the answer; token by token only where each has something to show."""
        stream = self._stream
        if not self._scored:
            yield Update(stream.text, finish=stream.finish)
            return
        before = 0
        for token, end, found in zip(stream.token_ids, stream.ends, stream.logprobs, strict=True):
            yield Update(stream.text[before:end], (token,), found)
            before = end
        yield Update(stream.text[before:], finish=stream.finish)

    def _usage(self) -> Json:
        assert self.answer is not None
        found = usage(self.asked.ask, self.answer.streams)
        return {
            "input_tokens": found["prompt_tokens"],
            "input_tokens_details": found["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": found["completion_tokens"],
            "output_tokens_details": found["completion_tokens_details"],
            "total_tokens": found["total_tokens"],
        }


def described(fault: Fault) -> Json:
    """`response.error`; the codes are OpenAI's, which has none for time that is over."""
    return {"code": "invalid_prompt" if fault.status == 400 else "server_error", "message": fault.message}
