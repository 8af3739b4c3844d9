"""The output of a response: items that grow from the parts of an answer, and the events that tell of it."""

import json
import secrets
from collections.abc import Callable, Collection
from typing import Any, assert_never

from headrace.engine.request import Logprobs
from headrace.engine.stream import Update
from headrace.serve.sse import encode
from headrace.text.parts import CallArguments, CallStart, Content, Part, Thought
from headrace.text.speech import Speech, parts_of

Json = dict[str, Any]

Score = Callable[[int, Logprobs], Json]
"""How a token and its log-probability are shown."""


class EventWriter:
    """Named events with growing numbers, as bytes; nothing where nobody listens."""

    def __init__(self, heard: bool):
        self.heard = heard
        self._number = 0
        self._out: list[bytes] = []

    def tell(self, name: str, /, **fields: Any) -> None:
        """One event."""
        if self.heard:
            self._add(name, encode(fields)[1:])

    def tell_text(self, name: str, head: bytes, text: str, tail: bytes) -> None:
        """One that only brings text: `head` and `tail` are the rest of its fields."""
        if self.heard:
            self._add(name, b"".join((head, encode(text), tail)))

    def take(self) -> bytes:
        """What has been told since the last time."""
        out, self._out = self._out, []
        return b"".join(out)

    def _add(self, name: str, fields: bytes) -> None:
        kind = name.encode()
        head = b'event: %b\ndata: {"type":"%b","sequence_number":%d,' % (kind, kind, self._number)
        self._number += 1
        self._out += (head, fields, b"\n\n")


class Output:
    """The items of one response. `custom` are the tools whose input is plain text."""

    def __init__(
        self,
        speech: Speech | None,
        events: EventWriter,
        custom: Collection[str] = (),
        score: Score | None = None,
    ):
        """`score`: log-probabilities are shown."""
        self.items: list[Json] = []
        self._speech, self._events, self._custom, self._score = speech, events, custom, score
        self._held: list[tuple[str, Json]] = []  # texts and scores of tokens that are not shown yet
        self._item: Json | None = None
        self._pieces: list[str] = []
        self._head = b""
        self._logprobs: list[Json] = []

    def push(self, update: Update) -> None:
        """What an update adds."""
        if self._score is not None and update.logprobs is not None:
            self._held.append((update.text, self._score(update.token_ids[0], update.logprobs)))
        for part in parts_of(self._speech, update.text, update.finish is not None):
            self._part(part)

    def close(self, status: str = "completed") -> None:
        """The last item is complete, or as complete as it gets."""
        match self._item:
            case None:
                return
            case {"type": "message"}:
                self._end_text("output_text", self._item["content"][0] | {"logprobs": self._logprobs})
            case {"type": "reasoning"}:
                self._end_text("reasoning_text", self._item["content"][0])
            case {"type": "function_call"}:
                self._item["arguments"] = arguments = "".join(self._pieces)
                self._tell(
                    "response.function_call_arguments.done", name=self._item["name"], arguments=arguments
                )
            case _:
                self._item["input"] = text = _input("".join(self._pieces))
                if text:
                    self._tell("response.custom_tool_call_input.delta", delta=text)
                self._tell("response.custom_tool_call_input.done", input=text)
        self._item["status"] = status
        self._events.tell("response.output_item.done", output_index=len(self.items) - 1, item=self._item)
        self._item = None

    def _scores(self, text: str) -> list[Json]:
        """Those of the tokens that `text` is made of. What is held before them is of thoughts, calls and marks."""
        if not self._held:
            return []
        spelled = "".join([piece for piece, _ in self._held])
        at = spelled.rfind(text)
        if at < 0:  # its beginning is of a token that was shown with what came before
            at = max(0, len(spelled) - len(text))
        found: list[Json] = []
        later: list[tuple[str, Json]] = []
        end = 0
        for piece, score in self._held:
            begin, end = end, end + len(piece)
            if begin >= at + len(text):
                later.append((piece, score))
            elif begin >= at or end > at:
                found.append(score)
        self._held = later
        return found

    def _part(self, part: Part) -> None:
        match part:
            case Content(text):
                if self._kind != "message":
                    self._begin_text("message", "msg", "output_text", {"annotations": [], "logprobs": []})
                self._pieces.append(text)
                logprobs = self._scores(text)
                self._logprobs += logprobs
                tail = b',"logprobs":' + encode(logprobs) + b"}" if logprobs else b',"logprobs":[]}'
                self._events.tell_text("response.output_text.delta", self._head, text, tail)
            case Thought(text):
                if self._kind != "reasoning":
                    self._begin_text("reasoning", "rs", "reasoning_text", {})
                self._pieces.append(text)
                self._events.tell_text("response.reasoning_text.delta", self._head, text, b"}")
            case CallStart(_, id, name):
                self._begin_call(id, name)
            case CallArguments(_, text):
                self._pieces.append(text)
                if self._kind == "function_call":
                    self._events.tell_text("response.function_call_arguments.delta", self._head, text, b"}")
            case _:
                assert_never(part)

    @property
    def _kind(self) -> str:
        return self._item["type"] if self._item is not None else ""

    def _begin(self, item: Json) -> None:
        self.close()
        self.items.append(item)
        self._item, self._pieces, self._logprobs = item, [], []
        self._events.tell("response.output_item.added", output_index=len(self.items) - 1, item=item)

    def _begin_text(self, kind: str, prefix: str, part: str, more: Json) -> None:
        item: Json = {"id": new_id(prefix), "type": kind, "status": "in_progress", "content": []}
        item |= {"role": "assistant"} if kind == "message" else {"summary": []}
        self._begin(item)
        item["content"] = [{"type": part, "text": ""} | more]
        self._tell("response.content_part.added", content_index=0, part=item["content"][0])
        self._head = self._place(content_index=0)

    def _end_text(self, name: str, part: Json) -> None:
        assert self._item is not None
        part = part | {"text": "".join(self._pieces)}
        self._item["content"] = [part]
        more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        self._tell(f"response.{name}.done", content_index=0, text=part["text"], **more)
        self._tell("response.content_part.done", content_index=0, part=part)

    def _begin_call(self, id: str, name: str) -> None:
        custom = name in self._custom
        item: Json = {
            "id": new_id("ctc" if custom else "fc"),
            "call_id": id,
            "name": name,
            "status": "in_progress",
        }
        item |= (
            {"type": "custom_tool_call", "input": ""}
            if custom
            else {"type": "function_call", "arguments": ""}
        )
        self._begin(item)
        self._head = self._place()

    def _place(self, **more: Any) -> bytes:
        """The fields that say where a delta belongs, up to the delta itself."""
        assert self._item is not None
        fields = {"item_id": self._item["id"], "output_index": len(self.items) - 1, **more}
        return encode(fields)[1:-1] + b',"delta":'

    def _tell(self, name: str, /, **fields: Any) -> None:
        assert self._item is not None
        self._events.tell(name, item_id=self._item["id"], output_index=len(self.items) - 1, **fields)


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{secrets.token_hex(16)}"


def _input(arguments: str) -> str:
    """The text that a custom tool was called with; what is no JSON is given as it is."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments
