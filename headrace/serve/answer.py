"""What one HTTP request waits for: the streams of its prompts and answers, and what they have to say."""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec

from headrace.base.errors import Fault
from headrace.engine.request import Request
from headrace.engine.stream import Stream, Update
from headrace.serve.queue import Load
from headrace.serve.record import Spans
from headrace.text.tokenizer import Tokenizer

WORST = ("stop", "length", "abort", "timeout", "error")
STATUS = {"abort": 499, "timeout": 408, "error": 500}


class Answer:
    """A stream per prompt and answer, in the order they were submitted.

    fault       why a stream ended with "error" (or was never taken): what the client is to be told
    cause       "stop", "length", "abort", "error" or "timeout"; of several answers the worst
    arrived, scheduled, first, last, ended      monotonic seconds: submitted, first admitted to a step, first and
                last token, over; None for what has not happened
    prompts, prompt_tokens      how many prompts, and their tokens, each prompt counted once
    resumes     how often the engine died meanwhile
    """

    def __init__(
        self,
        id: str,
        requests: Sequence[Request],
        tokenizer: Tokenizer | None,
        kind: str = "",
        name: str | None = None,
    ):
        self.id, self.kind, self.name = id, kind, name
        self.trace: str | None = None
        one = requests[0]
        self.params, self.max_tokens, self.n = one.params, one.max_tokens, one.params.n
        self.prompts = len(requests) // self.n
        self.prompt_tokens = sum(len(request.prompt) for request in requests[:: self.n])
        self.streams = [Stream(request, tokenizer) for request in requests]
        self.open = len(requests)
        self.fault: Fault | None = None
        self.cause = "stop"
        self.arrived = monotonic()
        self.scheduled: float | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.ended: float | None = None
        self.evictions = 0
        self.resumes = 0
        self.timer: asyncio.TimerHandle | None = None
        self.canceller: Callable[[Answer, str, Fault | None], None] | None = None
        self._news: list[tuple[int, Update]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._quiet = False

    async def end(self) -> None:
        """Wait until every stream has had its terminal update; no update is handed out, or wakes anybody."""
        self._quiet = True
        if self.open:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def next(self) -> list[tuple[int, Update]]:
        """Wait for updates: all that came since the last call, as (number of the stream, update).

        [] when every stream has had its terminal update. Exactly one update per stream has `finish` set.
        """
        while not self._news:
            if not self.open:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        news, self._news = self._news, []
        return news

    def cancel(self, finish: str = "abort") -> None:
        """End what still runs. Idempotent; the engine frees the blocks before its next step."""
        if self.open and self.canceller is not None:
            self.canceller(self, finish, None)

    def put(self, index: int, update: Update) -> None:
        """Have `next` return an update of a stream."""
        if self._quiet:
            return
        self._news.append((index, update))
        if (waiter := self._waiter) is not None and not waiter.done():
            waiter.set_result(None)

    def close(self, cause: str) -> None:
        """A stream has ended, for this cause."""
        self.open -= 1
        if WORST.index(cause) > WORST.index(self.cause):
            self.cause = cause
        if not self.open:
            self.ended = monotonic()
            if self.timer is not None:
                self.timer.cancel()
            if self._quiet and self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    @property
    def cached(self) -> int:
        """Tokens of the prompts found in the prefix cache."""
        return sum(stream.cached for stream in self.streams[:: self.n])

    @property
    def generated(self) -> int:
        """Tokens of all its answers."""
        return sum(len(stream.token_ids) for stream in self.streams)

    @property
    def status(self) -> int:
        """What HTTP says of it."""
        return self.fault.status if self.fault is not None else STATUS.get(self.cause, 200)

    @property
    def spans(self) -> Spans:
        """How long its parts took: the definitions behind metrics, log and traces."""
        arrived, scheduled, first, last = self.arrived, self.scheduled, self.first, self.last
        decode = last - first if first is not None and last is not None else None
        answers = len(self.streams)
        later = self.generated - answers
        return Spans(
            queue=None if scheduled is None else max(0.0, scheduled - arrived),
            prefill=None if scheduled is None or first is None else max(0.0, first - scheduled),
            ttft=None if first is None else first - arrived,
            decode=decode,
            tpot=decode / (later / answers) if decode is not None and later > 0 else None,
            total=(self.ended or monotonic()) - arrived,
        )


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
