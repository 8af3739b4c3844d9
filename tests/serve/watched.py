"""What a front would tell its watchers, made by hand."""

from headrace.engine.request import Event, Request, SamplingParams
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.record import Record, Watcher


def answer(
    id: str = "chatcmpl-1", prompt: int = 40, *, n: int = 1, kind: str = "chat", name: str | None = None
) -> Answer:
    """An answer to be told of, without an engine behind it."""
    params = SamplingParams(n=n, temperature=0.7, max_tokens=100)
    ids = [id] if n == 1 else [f"{id}/{i}" for i in range(n)]
    requests = [Request(id=each, prompt=tuple(range(prompt)), params=params, max_tokens=100) for each in ids]
    return Answer(id, requests, None, kind, name)


def token(watcher: Watcher, to: Answer, index: int = 0, *, cached: int = 0, token: int = 7) -> None:
    """A token comes for one of its streams."""
    event = Event(to.streams[index].request.id, token, cached=cached)
    watcher.updated(to, index, to.streams[index].take(event), event)


def finish(watcher: Watcher, to: Answer, cause: str = "stop") -> Record:
    """It is over; the record that the watcher was told."""
    for index, stream in enumerate(to.streams):
        event = Event(stream.request.id, None, "abort")
        watcher.updated(to, index, Update(finish=cause), event)
        to.close(cause)
    record = to.record()
    watcher.ended(record)
    return record


def record(**changes: object) -> Record:
    """A record of a request that took two seconds."""
    fields: dict[str, object] = {
        "id": "chatcmpl-1",
        "kind": "chat",
        "name": None,
        "trace": None,
        "prompt_tokens": 40,
        "cached": 16,
        "generated": 11,
        "max_tokens": 100,
        "prompts": 1,
        "n": 1,
        "arrived": 100.0,
        "scheduled": 100.25,
        "first": 100.5,
        "last": 101.5,
        "ended": 102.0,
        "evictions": 1,
        "resumes": 0,
        "cause": "stop",
        "status": 200,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]
