"""What is known of a request when it has ended, and who is told; torch-free."""

from typing import TYPE_CHECKING, Protocol

import msgspec

from headrace.base.errors import Fault
from headrace.engine.request import Event
from headrace.engine.stream import Update

if TYPE_CHECKING:
    from headrace.serve.answer import Answer
    from headrace.serve.wire import Stats


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


class Watcher(Protocol):
    """Told of everything as it happens, on the event loop: must be cheap and must not raise.

    Whoever inherits from it need only say what it wants to know.
    """

    def submitted(self, answer: "Answer") -> None:
        """Requests are with the engine (or will be, when it is back)."""

    def refused(self, kind: str, fault: Fault) -> None:
        """A request was not taken."""

    def updated(self, answer: "Answer", index: int, update: Update, event: Event) -> None:
        """Something came for one of an answer's streams."""

    def measured(self, stats: "Stats") -> None:
        """The engine said how it is doing."""

    def lost(self) -> None:
        """The engine is gone; the next one counts from zero."""

    def ended(self, record: Record) -> None:
        """An answer is over."""
