"""A stub server and a client on one event loop."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from headrace.bench.serve.client import Client, Conversation, Turn
from headrace.bench.serve.connection import Target
from headrace.bench.serve.dialect import Ask
from headrace.bench.serve.sample import Sample
from headrace.bench.serve.stub import Stub, serve


@dataclass
class Played:
    """What came of it."""

    samples: list[Sample]
    connections: int


def play(
    conversations: Sequence[Conversation],
    stub: Stub | None = None,
    *,
    ask: Ask | None = None,
    due: Sequence[float] | None = None,
    streams: int = 1,
    until: float = 30.0,
    **more: Any,
) -> Played:
    """Play conversations: at their moments, or one after the other on `streams`."""
    stub = stub or Stub(0.001)
    samples: list[Sample] = []

    async def run() -> Client:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(stub, 0, port.set_result))
        target = Target.of(f"http://127.0.0.1:{await port}", {})
        client = Client(target, ask or Ask(model="stub"), samples.append, start=monotonic(), **more)
        if due is not None:
            await client.open_loop(list(zip(due, conversations, strict=True)), until)
        else:
            await client.closed_loop(iter(conversations), streams, until, until)
        serving.cancel()
        return client

    client = asyncio.run(run())
    return Played(samples, client.pool.opened)


def turns(count: int, tokens: int = 5) -> list[Conversation]:
    """Conversations of one turn."""
    return [[Turn(f"prompt {n}", tokens)] for n in range(count)]
