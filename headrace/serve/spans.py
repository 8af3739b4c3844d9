"""How long the parts of a request took: the definitions behind metrics, log and traces."""

from typing import NamedTuple

from headrace.serve.record import Record


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

    @classmethod
    def of(cls, record: Record) -> "Spans":
        arrived, scheduled, first, last = record.arrived, record.scheduled, record.first, record.last
        decode = last - first if first is not None and last is not None else None
        answers = record.prompts * record.n
        later = record.generated - answers
        return cls(
            queue=None if scheduled is None else max(0.0, scheduled - arrived),
            prefill=None if scheduled is None or first is None else max(0.0, first - scheduled),
            ttft=None if first is None else first - arrived,
            decode=decode,
            tpot=decode / (later / answers) if decode is not None and later > 0 else None,
            total=record.ended - arrived,
        )

    @property
    def inference(self) -> float | None:
        """From the first step to the last token."""
        return None if self.prefill is None or self.decode is None else self.prefill + self.decode
