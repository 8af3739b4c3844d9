"""An engine in this process, joined with the text side of its requests."""

from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.engine.stream import Stream, Update
from headrace.text.tokenizer import Tokenizer


class Local:
    """Requests in, updates out. Not thread-safe: one thread calls it."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None):
        self.engine, self.tokenizer = engine, tokenizer
        self.streams: dict[str, Stream] = {}

    def submit(self, request: Request, whole: bool = False) -> Stream:
        """Put a request in line. Raises TooLong if it could not run even alone.

        `whole`: its stream is read when it has ended; `step` says nothing of tokens between the first and the last.
        """
        stream = Stream(request, self.tokenizer, whole)
        self.engine.add(request)
        self.streams[request.id] = stream
        return stream

    def step(self) -> list[tuple[str, Update]]:
        """One step of the engine; what it added to each request, the last update of each included."""
        updates = []
        for event in self.engine.step():
            if (stream := self.streams.get(event.id)) is None:
                continue  # ended by a stop string one step ago
            if stream.whole and stream.keep(event):
                continue
            update = stream.take(event)
            if update.cancel:
                self.engine.cancel(event.id)
            if update.finish:
                del self.streams[event.id]
            updates.append((event.id, update))
        return updates

    def cancel(self, id: str) -> Update | None:
        """End a request now. None if it has ended already."""
        event, stream = self.engine.cancel(id), self.streams.pop(id, None)
        return stream.take(event) if event is not None and stream is not None else None
