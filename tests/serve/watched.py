"""What a front would tell its watchers, made by hand."""

from headrace.engine.request import Event, Request, SamplingParams
from headrace.serve.answer import Answer
from headrace.serve.metrics import Metrics
from headrace.serve.record import Watcher
from headrace.serve.wire import Facts

FACTS = Facts(
    model="m", served=("m",), path="/models/m", created=1, max_len=2048, vocab=100, eos_ids=frozenset({1}),
    defaults=SamplingParams(), kv_blocks=512, block=16, rows=8, tokens=256, kv_tokens=8192, plan="", memory={},
    device="cpu", dtype="float32", kv_dtype="float32",
)  # fmt: skip


def answer(
    id: str = "chatcmpl-1", prompt: int = 40, *, n: int = 1, kind: str = "chat", name: str | None = None
) -> Answer:
    """An answer to be told of, without an engine behind it."""
    params = SamplingParams(n=n, temperature=0.7, max_tokens=100)
    ids = [id] if n == 1 else [f"{id}/{i}" for i in range(n)]
    requests = [Request(id=each, prompt=tuple(range(prompt)), params=params, max_tokens=100) for each in ids]
    return Answer(id, requests, None, kind, name)


def token(metrics: Metrics, to: Answer, index: int = 0, *, cached: int = 0, token: int = 7) -> None:
    """A token comes for one of its streams."""
    event = Event(to.streams[index].request.id, token, cached=cached)
    metrics.updated(to, index, to.streams[index].take(event), event)


def finish(to: Answer, cause: str = "stop", *watchers: Watcher) -> None:
    """It is over, and the watchers are told."""
    for _ in to.streams:
        to.close(cause)
    for watcher in watchers:
        watcher.ended(to)


def over(*, generated: int = 11, prompts: int = 1, n: int = 1, **changes: object) -> Answer:
    """A request that took two seconds."""
    params = SamplingParams(n=n, temperature=0.7, max_tokens=100)
    request = Request(id="1", prompt=tuple(range(40)), params=params, max_tokens=100)
    made = Answer("chatcmpl-1", [request] * (prompts * n), None, "chat")
    for stream in made.streams:
        stream.cached, stream.token_ids = 16, [7] * (generated // len(made.streams))
    times = {"arrived": 100.0, "scheduled": 100.25, "first": 100.5, "last": 101.5, "ended": 102.0}
    for name, value in {**times, "evictions": 1, **changes}.items():
        setattr(made, name, value)
    return made
