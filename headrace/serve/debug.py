"""What the server is doing now, and what became of single requests: the live feed and the timelines under /debug.

`GET /debug/live` answers with one snapshot; asked for `text/event-stream`, it goes on sending one per `?every=1.0`
seconds (0.2 to 60), each as `data: {...}`. Times are seconds, moments Unix time, shares 0 to 1; what is not known
yet is null. Latencies and rates are those of the last `window` seconds, over all front processes.

    {"time": 1790000000.1, "uptime": 62.0, "version": "0.1.0", "model": "smollm2-135m", "ready": true,
     "requests": {"running": 3, "waiting": 1, "finished": 120, "cancelled": 2, "failed": 0, "refused": 5},
     "kv": {"blocks": 4096, "used": 120, "usage": 0.029, "block": 16},
     "prefix": {"lookups": 5120, "hits": 2100, "rate": 0.41},               tokens looked up and found, in the window
     "tokens_per_second": {"prompt": 800.0, "generated": 210.0},
     "latency": {"window": 30.0,
                 "ttft": {"count": 12, "p50": 0.08, "p90": 0.1, "p99": 0.2}, "itl": {...}, "queue": {...}},
     "step": {"rows": 3, "tokens": 3, "seconds": 0.012},
     "preemptions": 0, "restarts": 0,
     "rows": [{"id": "chatcmpl-1", "name": "what the client called it" or null, "kind": "chat",
               "state": "waiting" | "prefill" | "decode", "age": 1.2, "queue": 0.01, "ttft": 0.08,
               "prompt_tokens": 40, "cached_tokens": 16, "generated": 17, "max_tokens": 200,
               "tokens_per_second": 21.0}],
     "more": 0}                                                             rows left out beyond the first 200

`POST /debug/requests/{id}/cancel` ends a running request. `GET /debug/requests/{id}` gives the timeline of a
request that runs or ended lately, `GET /debug/requests` the latest of them, `GET /debug/state` what the engine is.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from time import monotonic, time
from typing import Any

from headrace import __version__
from headrace.base.errors import Fault
from headrace.serve.answer import Answer
from headrace.serve.frontend import Frontend
from headrace.serve.lines import fields, refusal
from headrace.serve.metrics import LAYOUT, Metrics, Open, Pace
from headrace.serve.record import Watcher
from headrace.serve.window import Window, quantile
from headrace.serve.wire import Stats

Json = dict[str, Any]
KEPT = 1000
"""Requests that have ended and are still told of: at 64 streams each, some megabytes at most."""

SHOWN = 200
"""Rows of a snapshot."""

STREAMS = 64
"""Answers of one request whose pace is kept."""

LATELY, NOW = 30.0, 5.0
"""Seconds that percentiles, and rates, are of."""

LATENCIES = {
    "ttft": "vllm:time_to_first_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
}
SPEEDS = {"prompt": "vllm:prompt_tokens_total", "generated": "vllm:generation_tokens_total"}
PREFIX = {"lookups": "vllm:prefix_cache_queries_total", "hits": "vllm:prefix_cache_hits_total"}


class History(Watcher):
    """A watcher that remembers the timelines of the last requests. Told before `metrics`, which forgets what ends."""

    def __init__(self, metrics: Metrics, kept: int = KEPT):
        self.metrics, self.kept = metrics, kept
        self.ended_ones: OrderedDict[str, Json] = OrderedDict()
        self.refusals: deque[Json] = deque(maxlen=kept)

    def refused(self, kind: str, fault: Fault, id: str) -> None:
        """Its message may quote the request, so only its class and field are kept."""
        self.refusals.append({"time": time(), **refusal(kind, fault, id)})

    def ended(self, answer: Answer) -> None:
        """Keep the timeline; the oldest gives way."""
        opened = self.metrics.open.get(answer.id)
        self.ended_ones.pop(answer.id, None)  # a client may use a name again, and the latest stand last
        self.ended_ones[answer.id] = {
            **fields(answer),
            "state": "ended",
            "time": time(),
            "timeline": timeline(answer),
            "streams": streams(opened.paces if opened else [], answer.arrived),
        }
        while len(self.ended_ones) > self.kept:
            self.ended_ones.popitem(last=False)

    def latest(self, limit: int) -> Json:
        """So many that ended or were refused lately, and those that run."""
        now = monotonic()
        return {
            "running": [row(one, now) for one in list(self.metrics.open.values())[:SHOWN]],
            "ended": list(self.ended_ones.values())[: -limit - 1 : -1],
            "refused": list(self.refusals)[: -limit - 1 : -1],
        }

    def find(self, id: str) -> Json | None:
        """The timeline of a request, if it is known."""
        if (found := self.ended_ones.get(id)) is not None:
            return found
        if (opened := self.metrics.open.get(id)) is None:
            return None
        answer = opened.answer
        return {
            **row(opened, monotonic()),
            "timeline": timeline(answer),
            "streams": streams(opened.paces, answer.arrived),
        }


class Live(Watcher):
    """A watcher that looks at the totals now and then, and says what the last seconds were like."""

    def __init__(self, metrics: Metrics, front: Frontend):
        self.metrics, self.front = metrics, front
        self._lately, self._now = Window(LATELY, 1.0), Window(NOW)
        self._next = 0.0

    def measured(self, stats: Stats) -> None:
        """Look at the totals, twice a second while there is work; while there is none they stay as they are."""
        now = monotonic()
        if now >= self._next:
            self._next = now + 0.5
            self._look(now)

    def _look(self, now: float) -> tuple[tuple[float, list[float]], tuple[float, list[float]]]:
        """What was added lately, and just now, with the seconds in which it was."""
        totals = list(self.metrics.totals())
        return self._lately.push(now, totals), self._now.push(now, totals)

    def snapshot(self) -> Json:
        """What `GET /debug/live` says."""
        now, front, totals = monotonic(), self.front, self.metrics.totals()
        (_, lately), (span, latest) = self._look(now)
        stats, prefix = front.stats, {name: int(lately[LAYOUT.at(of)]) for name, of in PREFIX.items()}
        opened = sorted(self.metrics.open.values(), key=lambda one: one.answer.arrived)
        return {
            "time": time(),
            "uptime": time() - self.metrics.started,
            "version": __version__,
            "model": self.metrics.model,
            "ready": front.ready,
            "requests": {"running": stats.running, "waiting": stats.waiting, **_outcomes(totals)},
            "kv": self._kv(stats),
            "prefix": prefix | {"rate": prefix["hits"] / prefix["lookups"] if prefix["lookups"] else None},
            "tokens_per_second": {
                name: latest[LAYOUT.at(of)] / span if span else 0.0 for name, of in SPEEDS.items()
            },
            "latency": {
                "window": LATELY,
                **{name: _percentiles(of, lately) for name, of in LATENCIES.items()},
            },
            "step": {"rows": stats.step_rows, "tokens": stats.step_tokens, "seconds": stats.step_seconds},
            "preemptions": int(totals[LAYOUT.at("vllm:num_preemptions_total")]),
            "restarts": front.restarts,
            "rows": [row(one, now) for one in opened[:SHOWN]],
            "more": max(0, len(opened) - SHOWN),
        }

    def _kv(self, stats: Stats) -> Json:
        facts = self.metrics.facts
        blocks = facts.kv_blocks if facts else 0
        used = round(blocks * stats.kv_used)
        return {"blocks": blocks, "used": used, "usage": stats.kv_used, "block": facts.block if facts else 0}

    def state(self) -> Json:
        """What `GET /debug/state` says: all that is known of the engine and of this process."""
        front, facts = self.front, self.metrics.facts
        return {
            "ready": front.ready,
            "draining": front.draining,
            "restarts": front.restarts,
            "loading": None if front.connection.up else front.connection.loading,
            "engine": facts and {name: getattr(facts, name) for name in FACTS},
            "plan": facts and facts.plan.splitlines(),
            "memory": facts and facts.memory,
            "stats": {name: getattr(front.stats, name) for name in Stats.__struct_fields__},
            "pulse": front.connection.vigil.pulse,
            "front": front.front,
            "open": len(front.answers),
        }


FACTS = (
    *("model", "served", "path", "created", "max_len", "vocab", "device", "dtype", "kv_dtype"),
    *("kv_blocks", "block", "kv_tokens", "rows", "tokens"),
)
"""What /debug/state shows of the engine's facts beside its plan and memory."""


def _outcomes(totals: "memoryview[float]") -> Json:
    """How many requests ended how, since the start."""
    family = LAYOUT.family("headrace_requests_total")
    of = {
        "finished": ("stop", "length"),
        "cancelled": ("abort",),
        "failed": ("error", "timeout"),
    }
    counts = dict.fromkeys((*of, "refused"), 0)
    for n, labels in enumerate(family.series):
        cause = dict(labels)["cause"]
        name = next((name for name, causes in of.items() if cause in causes), "refused")
        counts[name] += int(totals[LAYOUT.starts[family.name] + n])
    return counts


def _percentiles(name: str, added: Sequence[float]) -> Json:
    """Of a histogram, from what was added to the totals."""
    bounds, start = LAYOUT.family(name).kept, LAYOUT.at(name)
    counts = added[start : start + len(bounds) + 1]
    parts = {f"p{part}": quantile(bounds, counts, part / 100) for part in (50, 90, 99)}
    return {"count": int(sum(counts)), **parts}


def row(opened: Open, now: float) -> Json:
    """A running request as the live view shows it."""
    answer = opened.answer
    made, first, begun = answer.generated, answer.first, answer.scheduled
    return {
        "id": answer.id,
        "name": answer.name,
        "kind": answer.kind,
        "state": "waiting" if begun is None else "prefill" if first is None else "decode",
        "age": now - answer.arrived,
        "queue": None if begun is None else max(0.0, begun - answer.arrived),
        "ttft": None if first is None else first - answer.arrived,
        "prompt_tokens": len(answer.streams[0].request.prompt),
        "cached_tokens": answer.streams[0].cached,
        "generated": made,
        "max_tokens": answer.max_tokens,
        "tokens_per_second": made / (now - first) if first is not None and now > first else None,
    }


def timeline(answer: Answer) -> list[Json]:
    """What happened to a request and when, in seconds from its arrival."""
    moments = [
        ("submitted", answer.arrived),
        ("scheduled", answer.scheduled),
        ("first token", answer.first),
        ("last token", answer.last),
        (answer.cause, answer.ended),
    ]
    return [{"what": what, "at": round(at - answer.arrived, 6)} for what, at in moments if at is not None]


def streams(paces: Sequence[Pace | None], arrived: float) -> list[Json]:
    """How the tokens of each answer came: first and last, how many, the longest gap and the token after it."""
    return [
        {
            "first": round(pace.first - arrived, 6),
            "last": round(pace.last - arrived, 6),
            "tokens": pace.tokens,
            "longest_gap": round(pace.gap, 6),
            "longest_gap_before_token": pace.gap_at or None,
        }
        for pace in paces[:STREAMS]
        if pace is not None
    ]
