"""What one HTTP request waits for: the streams of its prompts and answers, and what they have to say."""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec

from headrace.base.errors import Fault
from headrace.engine.request import Request
from headrace.engine.stream import Stream, Update
from headrace.serve.queue import Load
from headrace.serve.record import Record
from headrace.text.tokenizer import Tokenizer

WORST = ("stop", "length", "abort", "timeout", "error")
STATUS = {"abort": 499, "timeout": 408, "error": 500}


class Answer:
    """A stream per prompt and answer, in the order they were submitted.

    fault       why a stream ended with "error" (or was never taken): what the client is to be told
    arrived, scheduled, first, last     monotonic seconds: submitted, first admitted to a step, first and last token
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
        self.streams = [Stream(request, tokenizer) for request in requests]
        self.open = len(requests)
        self.fault: Fault | None = None
        self.cause = "stop"
        self.arrived = monotonic()
        self.scheduled: float | None = None
        self.first: float | None = None
        self.last: float | None = None
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
            if self.timer is not None:
                self.timer.cancel()
            if self._quiet and self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def record(self) -> Record:
        """What is kept when it is over."""
        request = self.streams[0].request
        n = max(1, request.params.n)
        prompts = self.streams[::n]
        return Record(
            id=self.id,
            kind=self.kind,
            name=self.name,
            trace=self.trace,
            params=request.params,
            prompt_tokens=sum(len(stream.request.prompt) for stream in prompts),
            cached=sum(stream.cached for stream in prompts),
            generated=sum(len(stream.token_ids) for stream in self.streams),
            max_tokens=request.max_tokens,
            prompts=len(prompts),
            n=n,
            arrived=self.arrived,
            scheduled=self.scheduled,
            first=self.first,
            last=self.last,
            ended=monotonic(),
            evictions=self.evictions,
            resumes=self.resumes,
            cause=self.cause,
            status=self.fault.status if self.fault is not None else STATUS.get(self.cause, 200),
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
