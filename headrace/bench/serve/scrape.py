"""The server's own numbers while it is loaded, from /metrics, under vLLM's names."""

from collections.abc import Sequence
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple

from headrace.base.errors import Unreachable
from headrace.bench.serve.connection import Target
from headrace.bench.serve.probe import fetch

GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
}
COUNTERS = {
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generated",
    "vllm:prefix_cache_queries_total": "lookups",
    "vllm:prefix_cache_hits_total": "hits",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:request_queue_time_seconds_sum": "queue_sum",
    "vllm:request_queue_time_seconds_count": "queue_count",
    "vllm:request_prefill_time_seconds_sum": "prefill_sum",
    "vllm:request_prefill_time_seconds_count": "prefill_count",
    "vllm:time_to_first_token_seconds_sum": "ttft_sum",
    "vllm:time_to_first_token_seconds_count": "ttft_count",
    "vllm:iteration_tokens_total_sum": "step_tokens",
    "vllm:iteration_tokens_total_count": "steps",
}
WANTED = GAUGES | COUNTERS


class Point(NamedTuple):
    """What the server said at a moment (monotonic seconds)."""

    at: float
    values: dict[str, float]


class Server(NamedTuple):
    """The server's side of a run; None for what it does not tell.

    queue, prefill, ttft    means in seconds of what ended meanwhile, by the server's clock
    """

    running_mean: float | None
    running_most: float | None
    waiting_mean: float | None
    waiting_most: float | None
    kv_usage_mean: float | None
    kv_usage_most: float | None
    prefix_hit_rate: float | None
    preemptions: float | None
    queue: float | None
    prefill: float | None
    ttft: float | None
    tokens_per_step: float | None
    generated: float | None


def shown(server: Server) -> list[tuple[str, str]]:
    """For people: what is known, under short names."""

    def level(mean: float | None, most: float | None, form: str) -> str:
        return "" if mean is None or most is None else f"{mean:{form}}, at most {most:{form}}"

    def one(value: float | None, form: str, unit: str = "", scale: float = 1.0) -> str:
        return "" if value is None else f"{value * scale:{form}}{unit}"

    rows = [
        ("running", level(server.running_mean, server.running_most, ".1f")),
        ("waiting", level(server.waiting_mean, server.waiting_most, ".1f")),
        ("KV in use", level(server.kv_usage_mean, server.kv_usage_most, ".1%")),
        ("prefix hits", one(server.prefix_hit_rate, ".1%")),
        ("preemptions", one(server.preemptions, ".0f")),
        ("queue, mean", one(server.queue, ",.1f", " ms", 1000)),
        ("prefill, mean", one(server.prefill, ",.1f", " ms", 1000)),
        ("TTFT, mean", one(server.ttft, ",.1f", " ms", 1000)),
        ("tokens per step", one(server.tokens_per_step, ",.1f")),
        ("tokens generated", one(server.generated, ",.0f")),
    ]
    return [(name, value) for name, value in rows if value]


def read(text: str) -> dict[str, float]:
    """Values of the series we know, those of several labels added up; the fullest of KV caches."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        key = WANTED.get(name)
        if key is None:
            continue
        try:
            value = float(rest.rpartition("}")[2].split()[0])
        except (ValueError, IndexError):
            continue
        found[key] = max(found.get(key, 0.0), value) if key == "kv_usage" else found.get(key, 0.0) + value
    return found


class Scraper:
    """Asks once in `every` seconds, on a thread, from `start` to `stop`. A server without metrics is left alone."""

    def __init__(self, target: Target, every: float = 1.0):
        self.target, self.every = target, every
        self.points: list[Point] = []
        self._over = Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        self.points, self._over = [], Event()
        if self._ask():
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()

    def stop(self) -> list[Point]:
        """The points, one of now included."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._ask()
        return self.points

    def _work(self) -> None:
        while not self._over.wait(self.every):
            self._ask()

    def _ask(self) -> bool:
        try:
            status, raw = fetch(self.target, "/metrics", seconds=2.0)
        except Unreachable:
            return False
        values = read(raw.decode("utf-8", "replace")) if status == 200 else {}
        if values:
            self.points.append(Point(monotonic(), values))
        return bool(values)


def join(points: Sequence[Point]) -> Server | None:
    """What the points say of the time between the first and the last."""
    if len(points) < 2:
        return None
    first, last = points[0].values, points[-1].values

    def added(name: str) -> float | None:
        return last[name] - first.get(name, 0.0) if name in last else None

    def part(upper: str, lower: str) -> float | None:
        above, below = added(upper), added(lower)
        return above / below if above is not None and below else None

    def level(name: str) -> tuple[float | None, float | None]:
        found = [point.values[name] for point in points[1:] if name in point.values]
        return (sum(found) / len(found), max(found)) if found else (None, None)

    return Server(
        *level("running"),
        *level("waiting"),
        *level("kv_usage"),
        prefix_hit_rate=part("hits", "lookups"),
        preemptions=added("preemptions"),
        queue=part("queue_sum", "queue_count"),
        prefill=part("prefill_sum", "prefill_count"),
        ttft=part("ttft_sum", "ttft_count"),
        tokens_per_step=part("step_tokens", "steps"),
        generated=added("generated"),
    )
