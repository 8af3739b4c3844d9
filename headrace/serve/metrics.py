"""Counts what happens to requests and steps, and says it to Prometheus.

A token costs an index and an addition. Each front process has its own sheet of numbers; where there are several,
they keep them in files of one folder, and whichever is asked answers for all. What the engine process counts is
entered by the first front only.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import monotonic, time

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from headrace import __version__
from headrace.base.errors import Busy, Fault
from headrace.engine.request import Event
from headrace.engine.stream import Update
from headrace.serve.answer import Answer
from headrace.serve.families import FAMILIES, KINDS, METHODS, REJECTIONS, ROUTES, SPANS, STATUSES
from headrace.serve.series import Histogram, Layout, Page, Sheet, info, neighbours, totals
from headrace.serve.wire import Facts, Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LAYOUT = Layout(FAMILIES)
MANY = 4096
"""Tokens after which their gaps are entered even if nobody asks."""

KEEP = 1.0
"""Seconds for which the list of other processes is kept."""

OWN = 5.0
"""Seconds for which the text on the process itself is kept: to ask the system for it is slow."""

COUNTED = {
    "vllm:prefix_cache_queries_total": "prompt_tokens",
    "vllm:prefix_cache_hits_total": "cached_tokens",
    "vllm:num_preemptions_total": "evictions",
    "headrace_recomputed_tokens_total": "recomputed_tokens",
    "vllm:spec_decode_num_drafts_total": "drafts",
    "vllm:spec_decode_num_draft_tokens_total": "drafted_tokens",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens",
    "headrace_steps_total": "steps",
    "headrace_step_seconds_total": "busy_seconds",
    "headrace_step_rows_total": "rows_total",
    "headrace_engine_faults_total": "faults",
}
"""Counters that are the engine's own totals: the field of Stats they rise with."""

SHOWN = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_used",
    "headrace_step_rows": "step_rows",
    "headrace_step_tokens": "step_tokens",
}
"""Gauges that are fields of Stats."""


@dataclass(slots=True)
class Pace:
    """How the tokens of one answer came: the first and the latest moment, how many, the longest gap before which."""

    first: float
    last: float
    tokens: int = 1
    gap: float = 0.0
    gap_at: int = 0


@dataclass(slots=True)
class Open:
    """A request that runs, and the pace of each of its answers."""

    answer: Answer
    paces: list[Pace | None]


class Metrics:
    """A watcher that counts.

    model    the name clients know the model by: a label of every series
    folder   where several front processes keep their sheets
    index    which of them this is; the first enters what the engine counts
    """

    def __init__(self, model: str, *, folder: Path | None = None, index: int = 0):
        path = None if folder is None else folder / f"front-{index}.sheet"
        self.model, self.folder, self.index = model, folder, index
        self.sheet = Sheet(LAYOUT, path)
        self.open: dict[str, Open] = {}
        self._gaps: list[float] = []
        self.started = time()
        self._last = Stats()
        common = {"engine": "0", "model_name": model}
        self._page = Page(LAYOUT, tuple(common.items()))
        self._ready = [info("headrace_ready", "1 while requests are taken.", common, n) for n in range(2)]
        self.facts: Facts | None = None
        self._facts = b""
        self._process = (-OWN, b"")
        self._sheets: tuple[float, list[memoryview[float]]] = (-KEEP, [self.sheet.values])
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        sheet = self.sheet
        self._ttft = Histogram(sheet, "vllm:time_to_first_token_seconds")
        self._itl = Histogram(sheet, "vllm:inter_token_latency_seconds")
        self._spans = {name: Histogram(sheet, family) for name, family in SPANS.items()}
        self._routes = {
            (route, method): Histogram(sheet, "http_request_duration_seconds", route, method)
            for route, method in product(ROUTES, METHODS)
        }
        sheet.set(LAYOUT.at("headrace_streams"), 0)  # a process before this one may have left some
        if index == 0:
            sheet.set(LAYOUT.at("vllm:engine_sleep_state", "awake"), 1)

    # -- what the front tells ---------------------------------------------------------------------------------

    def submitted(self, answer: Answer) -> None:
        """Requests were handed to the engine."""
        self.open[answer.id] = Open(answer, [None] * len(answer.streams))
        self.sheet.add(LAYOUT.at("headrace_streams"), len(answer.streams))

    def refused(self, kind: str, fault: Fault, id: str) -> None:
        """A request was not taken."""
        cause = "busy" if isinstance(fault, Busy) else "unavailable" if fault.status >= 500 else "refused"
        self._ending(kind, cause)
        if isinstance(fault, Busy):
            reason = REJECTIONS[fault.limit == "tokens"]
            self.sheet.add(LAYOUT.at("vllm:admission_rejections_total", reason))

    def updated(self, answer: Answer, index: int, update: Update, event: Event) -> None:
        """A token came."""
        if event.token is None or (opened := self.open.get(answer.id)) is None:
            return
        now = monotonic()
        pace = opened.paces[index]
        if pace is None:
            opened.paces[index] = Pace(now, now)
            self._first(answer, index, event, now - answer.arrived)
            return
        gap = now - pace.last
        pace.last = now
        pace.tokens += 1
        if gap > pace.gap:
            pace.gap, pace.gap_at = gap, pace.tokens
        self._gaps.append(gap)
        if len(self._gaps) >= MANY:
            self._flush()

    def _flush(self) -> None:
        """Enter what came since the last call: adding to a sheet costs more than adding to a list."""
        if self._gaps:
            self._itl.observe_all(self._gaps)
            self.sheet.add(LAYOUT.at("vllm:generation_tokens_total"), len(self._gaps))
            self._gaps.clear()

    def _first(self, answer: Answer, index: int, event: Event, ttft: float) -> None:
        prompt = len(answer.streams[index].request.prompt)
        self._ttft.observe(ttft)
        for name, source, amount in (
            ("vllm:generation_tokens_total", (), 1),
            ("vllm:prompt_tokens_total", (), prompt),
            ("vllm:prompt_tokens_cached_total", (), event.cached),
            ("vllm:prompt_tokens_cached_by_source_total", ("device",), event.cached),
            ("vllm:prompt_tokens_by_source_total", ("local_compute",), prompt - event.cached),
            ("vllm:prompt_tokens_by_source_total", ("local_cache_hit",), event.cached),
        ):
            self.sheet.add(LAYOUT.at(name, *source), amount)

    def ended(self, answer: Answer) -> None:
        """A request that was taken is over. Times and sizes are counted of those that ran to their end."""
        del self.open[answer.id]
        self.sheet.add(LAYOUT.at("headrace_streams"), -len(answer.streams))
        self._ending(answer.kind, answer.cause)
        ending = "abort" if answer.cause == "timeout" else answer.cause
        self.sheet.add(LAYOUT.at("vllm:request_success_total", ending))
        if answer.resumes:
            self.sheet.add(LAYOUT.at("headrace_resumed_requests_total"))
        if answer.cause not in ("stop", "length"):
            return
        spans = answer.spans
        for name, value in {
            **spans._asdict(),
            "inference": spans.inference,
            "prompt_tokens": answer.prompt_tokens,
            "generated": answer.generated,
            "longest": max(len(stream.token_ids) for stream in answer.streams),
            "max_tokens": answer.max_tokens,
            "n": answer.n,
            "computed": answer.prompt_tokens - answer.cached,
            "evictions": answer.evictions,
        }.items():
            if value is not None and name in self._spans:
                self._spans[name].observe(value)

    def _ending(self, kind: str, cause: str) -> None:
        kind = kind if kind in KINDS else KINDS[-1]
        self.sheet.add(LAYOUT.at("headrace_requests_total", kind, cause))

    def measured(self, stats: Stats) -> None:
        """The engine's numbers after a step."""
        self._flush()
        if self.index:
            return
        last = self._last
        for name, field in COUNTED.items():
            self.sheet.add(LAYOUT.at(name), getattr(stats, field) - getattr(last, field))
        for name, field in SHOWN.items():
            self.sheet.set(LAYOUT.at(name), getattr(stats, field))
        self.sheet.set(LAYOUT.at("vllm:num_requests_waiting_by_reason", "capacity"), stats.waiting)
        self._rise(LAYOUT.at("vllm:iteration_tokens_total"), stats.sizes, last.sizes)
        first = LAYOUT.at("vllm:spec_decode_num_accepted_tokens_per_pos_total", "0")
        self._rise(first, stats.accepted_at, last.accepted_at)
        self._last = stats

    def _rise(self, first: int, now: list[int], before: list[int]) -> None:
        for n, (count, then) in enumerate(zip(now, before or [0] * len(now), strict=True), first):
            if count != then:
                self.sheet.add(n, count - then)

    def lost(self) -> None:
        """The engine's numbers begin again at 0; ours only rise."""
        self._last = Stats()
        if self.index == 0:
            self.sheet.add(LAYOUT.at("headrace_engine_restarts_total"))

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered. `route` is the path as it was registered."""
        route = route if route in ROUTES else ROUTES[-1]
        method = method if method in METHODS else METHODS[-1]
        kind = STATUSES[min(max(status // 100 - 2, 0), len(STATUSES) - 1)]
        self.sheet.add(LAYOUT.at("http_requests_total", route, method, kind))
        self._routes[route, method].observe(seconds)

    # -- what is asked ----------------------------------------------------------------------------------------

    def met(self, facts: Facts) -> None:
        """What the engine is, for the series whose labels say it."""
        self.facts = facts
        cache = {
            "block_size": str(facts.block),
            "cache_dtype": facts.kv_dtype,
            "engine": "0",
            "model_name": self.model,
            "num_gpu_blocks": str(facts.kv_blocks),
        }
        build = {
            "version": __version__,
            "device": facts.device,
            "dtype": facts.dtype,
            "model_name": self.model,
        }
        lora = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        self._facts = (
            info("vllm:cache_config_info", "The KV cache.", cache)
            + info("vllm:lora_requests_info", "Adapters in use.", lora, self.started)
            + info("headrace_build_info", "What this is.", build)
        )

    def totals(self) -> "memoryview[float]":
        """All numbers, of all front processes together."""
        self._flush()
        sheets = self._neighbours()
        return sheets[0] if len(sheets) == 1 else totals(sheets)

    def render(self, ready: bool = True) -> bytes:
        """The text for Prometheus. Histograms may be up to `series.LAZY` seconds old, gauges and most counters not."""
        self._flush()
        now = monotonic()
        if now - self._process[0] >= OWN:
            self._process = (now, generate_latest(self._registry))
        text = self._page.render(self._neighbours(), now)
        return b"".join((text, self._ready[ready], self._facts, self._process[1]))

    def _neighbours(self) -> list["memoryview[float]"]:
        if self.folder is None:
            return self._sheets[1]
        now = monotonic()
        if now - self._sheets[0] >= KEEP:
            # Somebody may have tidied the folder away; what this process counted is still here.
            self._sheets = (now, neighbours(self.folder, LAYOUT) or [self.sheet.values])
        return self._sheets[1]
