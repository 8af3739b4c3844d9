"""A server that does nothing but stream: what the client is measured against, and what it is tested with.

`python -m headrace.bench.serve.stub --interval 0.01` prints its port. Its answers are known in advance: a token for
every stream at each tick, or as fast as they are taken with an interval of 0. Misbehaviour can be asked for.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from itertools import islice
from threading import Thread
from typing import Any

from headrace.base.loop import runner

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"data: [DONE]\n\n"


def chunk(body: bytes) -> bytes:
    """A piece of a body in HTTP's framing."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def frame(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % json.dumps(body, separators=(",", ":")).encode()


def answer(status: int, body: dict[str, Any], more: str = "") -> bytes:
    """A whole answer."""
    text = json.dumps(body).encode()
    return f"HTTP/1.1 {status} x\r\ncontent-length: {len(text)}\r\n{more}\r\n".encode() + text


class Stub:
    """All streams of the server, and the clock they share.

    interval    seconds between tokens; 0: as fast as a client takes them
    wait        seconds before the first token
    trouble     what goes wrong with requests: see `Stream.TROUBLE`
    every       how many requests there are to one that goes wrong
    slots       streams that move at once, the others wait in line; 0: all
    """

    def __init__(self, interval: float, wait: float = 0.0, trouble: str = "", every: int = 1, slots: int = 0):
        self.interval, self.wait, self.trouble, self.every = interval, wait, trouble, every
        self.slots = slots
        self.streams: dict[Stream, None] = {}  # in the order they came
        self.requests = 0
        self.generated = 0
        self.running = False

    def go(self) -> None:
        """See that streams move."""
        if not self.running and self.streams:
            self.running = True
            loop = asyncio.get_running_loop()
            self._next = loop.time() + self.interval
            loop.call_at(self._next, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for stream in list(islice(self.streams, self.slots or None)):
            stream.tick(now)
        self.running = bool(self.streams)
        if not self.running:
            return
        if self.interval:
            self._next = max(self._next + self.interval, now)
            loop.call_at(self._next, self._tick)
        else:
            loop.call_soon(self._tick)

    def metrics(self) -> bytes:
        """As vLLM says it."""
        running = min(len(self.streams), self.slots or len(self.streams))
        lines = (
            f'vllm:num_requests_running{{model_name="stub"}} {running}',
            f'vllm:num_requests_waiting{{model_name="stub"}} {len(self.streams) - running}',
            'vllm:kv_cache_usage_perc{model_name="stub"} 0.5',
            f'vllm:generation_tokens_total{{model_name="stub"}} {self.generated}',
            'vllm:prefix_cache_queries_total{model_name="stub"} 100',
            'vllm:prefix_cache_hits_total{model_name="stub"} 25',
        )
        return ("\n".join(lines) + "\n").encode()


class Stream(asyncio.Protocol):
    """A connection; answers its requests one after the other."""

    TROUBLE = ("busy", "error", "cut", "garbage", "no-end", "late-error", "empty", "silent", "dead")

    def __init__(self, stub: Stub):
        self.stub = stub
        self.buffer = b""
        self.left = 0
        self.full = False
        self.trouble = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.stub.streams.pop(self, None)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) >= length:
            self.buffer = rest[length:]
            _, path, _ = head.split(b" ", 2)
            self._answer(path.decode(), rest[:length])

    def _answer(self, path: str, raw: bytes) -> None:
        if path == "/v1/models":
            body = {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 32768}]}
            self.transport.write(answer(200, body))
        elif path == "/metrics":
            text = self.stub.metrics()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
        elif path == "/tokenize":
            words = str(json.loads(raw).get("prompt", "")).split()
            self.transport.write(answer(200, {"count": len(words), "tokens": list(range(len(words)))}))
        elif path.endswith("completions"):
            self._begin(json.loads(raw), chat="chat" in path)
        else:
            self.transport.write(answer(404, {"error": {"message": "no such path"}}))

    def _begin(self, body: dict[str, Any], chat: bool) -> None:
        stub = self.stub
        stub.requests += 1
        self.trouble = stub.trouble if stub.requests % stub.every == 0 else ""
        if self.trouble == "dead":
            os._exit(1)
        if self.trouble == "busy":
            self.transport.write(answer(429, {"error": {"message": "full"}}, "retry-after: 1\r\n"))
            return
        if self.trouble == "error" or body.get("model") not in ("stub", ""):
            self.transport.write(answer(500 if self.trouble else 404, {"error": {"message": "it broke"}}))
            return
        self.tokens = self.left = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        self.made, self.not_before = 0, asyncio.get_running_loop().time() + stub.wait
        self.prompt = len(json.dumps(body.get("messages") or body.get("prompt") or "").split())
        choice = {"index": 0, "finish_reason": None}
        part = {"delta": {"content": " word"}} if chat else {"text": " word"}
        kind = "chat.completion.chunk" if chat else "text_completion"
        self.start = {
            "id": f"stub-{stub.requests}",
            "object": kind,
            "created": 1_700_000_000,
            "model": "stub",
        }
        self.token = chunk(frame(self.start | {"choices": [choice | part]}))
        if not body.get("stream"):
            text = " word" * self.tokens
            whole = {"finish_reason": "length"} | ({"message": {"content": text}} if chat else {"text": text})
            self.transport.write(answer(200, {"choices": [whole], "usage": self._usage()}))
            return
        role = self.start | {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
        self.transport.write(HEAD + (chunk(frame(role)) if chat else b""))
        stub.streams[self] = None
        stub.go()

    def _usage(self) -> dict[str, Any]:
        usage = {"prompt_tokens": self.prompt, "completion_tokens": self.tokens}
        return usage | {"prompt_tokens_details": {"cached_tokens": 0}}

    def tick(self, now: float) -> None:
        """A token, if it is time and there is room."""
        if self.full or now < self.not_before or self.transport.is_closing():
            return
        if self.left and not (self.trouble and self._go_wrong()):
            self.transport.write(self.token)
            self.left -= 1
            self.made += 1
            self.stub.generated += 1
        if not self.left and self in self.stub.streams:
            del self.stub.streams[self]
            end = self.start | {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]}
            usage = self.start | {"choices": [], "usage": self._usage()}
            self.transport.write(chunk(frame(end) + frame(usage) + END) + b"0\r\n\r\n")

    def _go_wrong(self) -> bool:
        """Do what the trouble is, after three tokens; whether that was all."""
        if self.trouble == "silent":
            return True
        if self.made < 3 and self.trouble != "empty":
            return False
        write = self.transport.write
        wrong: dict[str, Callable[[], Any]] = {
            "cut": self.transport.close,
            "garbage": lambda: write(chunk(b"data: {oops\n\n") + b"0\r\n\r\n"),
            "no-end": lambda: write(b"0\r\n\r\n"),
            "late-error": lambda: write(
                chunk(frame({"error": {"message": "fell over"}}) + END) + b"0\r\n\r\n"
            ),
            "empty": lambda: write(chunk(END) + b"0\r\n\r\n"),
        }
        wrong[self.trouble]()
        self.stub.streams.pop(self, None)
        return True


async def serve(stub: Stub, port: int, said: Callable[[int], None]) -> None:
    """Answer until cancelled."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Stream(stub), "127.0.0.1", port, backlog=4096
    )
    said(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Streams words that mean nothing.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--trouble", default="", choices=("", *Stream.TROUBLE))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--slots", type=int, default=0)
    given = parser.parse_args()

    def leave() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    Thread(target=leave, daemon=True).start()  # with whoever started us

    def said(port: int) -> None:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()

    stub = Stub(given.interval, given.wait, given.trouble, given.every, given.slots)
    with runner() as loop:
        loop.run(serve(stub, given.port, said))


if __name__ == "__main__":
    main()
