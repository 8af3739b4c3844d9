"""All knobs of the server: the engine's tree and the branch `serve`; torch-free."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from headrace.base.config import Config, Knobs, Memory, Model, Schedule, knob
from headrace.base.hardware import cores

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#*\sA-Z]+")
"""As browsers write it: in small letters, with nothing behind host and port."""


def _names(value: str) -> str | None:
    return None if split(value) else "expected at least one name"


def _origins(value: str) -> str | None:
    given = split(value)
    good = given and all(map(_ORIGIN.fullmatch, given))
    return None if good else "expected * or origins such as https://example.com, without a path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve(Knobs):
    """How the model is offered."""

    host: str = knob("127.0.0.1", "address to listen on; 0.0.0.0 or :: is every network of this machine")
    port: int = knob(8000, "port to listen on; 0 takes a free one", low=0, high=65535)
    served_model_name: str | None = knob(
        None,
        "names clients may ask for, separated by commas; default: the model as it was given",
        check=_names,
    )
    workers: int | None = knob(
        None,
        "processes that speak HTTP, behind one port; default: one for every four cores, four at most",
        low=1,
        high=64,
    )
    queue: int = knob(
        1024, "requests that may wait beyond those one step can hold; further ones get 429", low=0
    )
    queue_tokens: int | None = knob(
        None,
        "tokens that waiting prompts may have together; default: four times what the KV cache holds",
        low=1,
    )
    timeout: float | None = knob(
        None,
        "most seconds a request may take that brings no timeout_ms of its own; default: no limit",
        low=0.001,
    )
    drain_seconds: float = knob(30.0, "how long running requests may go on after SIGTERM", low=0)
    stall_seconds: float = knob(
        20.0, "restart the engine when no step ends for so long while there is work", low=0.1
    )
    restarts: int = knob(5, "give up when the engine dies more often than this within five minutes", low=0)
    api_key: str | None = knob(
        None, "key that clients must send; default: that of HEADRACE_API_KEY, else none is asked for"
    )
    api_key_file: str | None = knob(
        None, "file with keys that clients may send, one a line; default: no file"
    )
    admin_key: str | None = knob(
        None,
        "key for control and debugging; default: that of HEADRACE_ADMIN_KEY; without one they are closed to networks",
    )
    admin_key_file: str | None = knob(None, "file with keys for control and debugging; default: no file")
    ssl_certfile: str | None = knob(None, "certificate (PEM) to serve HTTPS with; default: plain HTTP")
    ssl_keyfile: str | None = knob(None, "private key (PEM) of the certificate; default: in the same file")
    insecure: bool = knob(False, "listen on a network without a key, for everyone who can reach it")
    open_paths: str | None = knob(
        None, "paths besides /health/live that need no key, such as /health,/metrics; default: no others"
    )
    allowed_hosts: str | None = knob(
        None, "names that requests may be addressed to, by commas; default: this machine's own, with keys any"
    )
    cors: str | None = knob(
        None,
        "origins that browsers may send requests from, by commas; default: the page's own only",
        check=_origins,
    )
    max_body: int = knob(32 * 2**20, "most bytes of a request's body", low=1024)
    max_header: int = knob(64 * 2**10, "most bytes of a request's headers", low=1024, high=2**20)
    max_prompts: int = knob(1024, "most prompts of one request", low=1)
    max_answers: int = knob(1024, "most answers of one request: prompts times n", low=1)
    body_seconds: float = knob(
        60.0, "how long the headers and the body of a request may take to come in", low=1
    )
    send_seconds: float = knob(
        120.0, "end a stream whose reader has taken nothing for so long while there was more", low=1
    )
    ping_seconds: float = knob(
        0.0, "send a comment down a stream that was silent for so long; 0: never", low=0
    )
    request_log: Literal["text", "json", "off"] = knob(
        "text", "form of the log's line for every request that ended; what was said is never in it"
    )
    traces: str | None = knob(
        None,
        "OTLP/HTTP address for traces, such as http://127.0.0.1:4318/v1/traces (extra otel); default: none are made",
    )
    keep_responses: int = knob(
        64 * 2**20, "bytes of responses kept for previous_response_id and to be fetched; 0 keeps none", low=0
    )
    page: bool = knob(True, "offer the page with chat and live view at /")
    max_logprobs: int = knob(20, "most likely tokens a request may ask for per position; -1: all", low=-1)

    @property
    def fronts(self) -> int:
        """`workers`, or how many suit the cores: one streams about 50,000 tokens a second and takes a core for it."""
        return self.workers or max(1, min(4, cores() // 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Every knob of `headrace serve`. HTTP may add to Serve; what the engine needs is in `engine`."""

    model: Model = field(default_factory=Model)
    memory: Memory = field(default_factory=Memory)
    schedule: Schedule = field(default_factory=Schedule)
    serve: Serve = field(default_factory=Serve)

    @property
    def engine(self) -> Config:
        """The part that the engine process is started with."""
        schedule = self.schedule
        if not self.serve.restarts and schedule.deterministic is None:
            schedule = replace(schedule, deterministic=False)  # its requests end with it
        return Config(model=self.model, memory=self.memory, schedule=schedule)

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the model for clients."""
        return tuple(split(self.serve.served_model_name)) or (self.model.path,)


def split(given: str | None) -> list[str]:
    """The parts of a knob that takes several things separated by commas."""
    return [part.strip() for part in (given or "").split(",") if part.strip()]
