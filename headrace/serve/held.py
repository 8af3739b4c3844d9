"""One request of a front that the engine has or shall have; torch-free."""

import msgspec

from headrace.engine.request import Request
from headrace.engine.stream import Stream
from headrace.serve.answer import Answer
from headrace.serve.queue import Load


class Held:
    """A request the engine has or shall have: whose it is, whether it has been heard of, events until it is cleared."""

    __slots__ = ("answer", "begun", "index", "probe", "request", "stream")

    def __init__(self, answer: Answer, index: int, request: Request, stream: Stream):
        self.answer, self.index, self.request, self.stream = answer, index, request, stream
        self.begun = False
        self.probe = 0

    @property
    def load(self) -> Load:
        request = self.request
        return Load(self.begun, len(self.stream.token_ids), request.max_tokens, len(request.prompt))

    def resumed(self) -> Request:
        """What a new engine is asked for: what is left of it."""
        self.stream.prompt_logprobs.clear()  # they are computed again
        return msgspec.structs.replace(self.request, emitted=tuple(self.stream.token_ids))
