"""What is known of a request when it has ended, and who is told; torch-free."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from headrace.base.errors import Fault
from headrace.engine.request import SamplingParams

if TYPE_CHECKING:
    from headrace.serve.answer import Answer
    from headrace.serve.wire import Facts, Stats


class Spans(NamedTuple):
    """Seconds; None for a part that the request did not reach.

    queue    from arrival to the first step        prefill  from there to the first token
    ttft     from arrival to the first token       decode   from the first token to the last
    tpot     decode over the tokens after the first; several answers of one request share it
    total    from arrival to the end
    """

    queue: float | None
    prefill: float | None
    ttft: float | None
    decode: float | None
    tpot: float | None
    total: float

    @property
    def inference(self) -> float | None:
        """From the first step to the last token."""
        return None if self.prefill is None or self.decode is None else self.prefill + self.decode


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request that has ended. Times are monotonic seconds, None for what did not happen.

    prompt_tokens   of all its prompts, each counted once      generated   of all its answers
    cached          tokens of the prompts found in the prefix cache
    prompts, n      how many prompts, and answers to each
    arrived, scheduled, first, last     submitted; first admitted to a step; first and last token
    ended           when it was over
    cause           "stop", "length", "abort", "error" or "timeout"; of several answers the worst
    status          what HTTP says of it      resumes   how often the engine died meanwhile
    """

    id: str
    kind: str
    name: str | None
    trace: str | None
    params: SamplingParams
    prompt_tokens: int
    cached: int
    generated: int
    max_tokens: int
    prompts: int
    n: int
    arrived: float
    scheduled: float | None
    first: float | None
    last: float | None
    ended: float
    evictions: int
    resumes: int
    cause: str
    status: int

    @property
    def spans(self) -> Spans:
        """How long its parts took: the definitions behind metrics, log and traces."""
        arrived, scheduled, first, last = self.arrived, self.scheduled, self.first, self.last
        decode = last - first if first is not None and last is not None else None
        answers = self.prompts * self.n
        later = self.generated - answers
        return Spans(
            queue=None if scheduled is None else max(0.0, scheduled - arrived),
            prefill=None if scheduled is None or first is None else max(0.0, first - scheduled),
            ttft=None if first is None else first - arrived,
            decode=decode,
            tpot=decode / (later / answers) if decode is not None and later > 0 else None,
            total=self.ended - arrived,
        )


class Watcher(Protocol):
    """Told of everything but tokens as it happens, on the event loop: must be cheap and must not raise.

    Whoever inherits from it need only say what it wants to know.
    """

    def met(self, facts: "Facts") -> None:
        """There is an engine, or another one."""

    def submitted(self, answer: "Answer") -> None:
        """Requests are with the engine (or will be, when it is back)."""

    def refused(self, kind: str, fault: Fault, id: str) -> None:
        """A request was not taken. `id`: what X-Request-Id says in its answer."""

    def measured(self, stats: "Stats") -> None:
        """The engine said how it is doing."""

    def lost(self) -> None:
        """The engine is gone; the next one counts from zero."""

    def ended(self, record: Record) -> None:
        """An answer is over."""
