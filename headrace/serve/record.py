"""How long the parts of a request took, and who is told of requests; torch-free."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.base.errors import Fault

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

    def ended(self, answer: "Answer") -> None:
        """An answer is over."""
