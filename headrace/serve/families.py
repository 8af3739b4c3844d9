"""Every metric the server exports: vLLM's names, types, labels and bucket edges, and ours where they say more.

Edges below vLLM's finest are added to its histograms, which leaves every query over them as it was.
"""

from itertools import product
from math import log10

from headrace.engine.tally import EDGES, GUESSES
from headrace.serve.series import Family, Labels

ENDINGS = ("stop", "length", "abort", "error")
"""vLLM's finished_reason."""

CAUSES = ("stop", "length", "abort", "timeout", "error", "busy", "refused", "unavailable")
"""How a request ended, or why it never began: more than vLLM tells."""

KINDS = ("chat", "completion", "response", "other")
REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")
METHODS = ("GET", "POST", "other")
STATUSES = ("2xx", "3xx", "4xx", "5xx")
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/health",
    "none",
)
"""Routes that are counted by name; every other one is `none`, so that no client can add series."""

TTFT = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
TOKEN = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
SPAN = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30),
    *(40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
COUNTS = (*(float(f"{m}e{e}") for e, m in product(range(6), (1, 2, 5))), 1e6)
ANSWERS = (1, 2, 5, 10, 20)
EVICTIONS = (0, 1, 2, 5, 10, 20, 50)


def ladder(edges: tuple[float, ...]) -> tuple[float, ...]:
    """`edges` and between them bounds 8% apart from 0.1 ms to 100 s: fine enough for percentiles of a window."""
    per_decade = 30
    steps = range(round(6 * per_decade) + 1)
    fine = {float(f"{10 ** (log10(1e-4) + n / per_decade):.3g}") for n in steps}
    return tuple(sorted(fine | {float(edge) for edge in edges}))


def _labelled(label: str, *values: str) -> tuple[Labels, ...]:
    return tuple(((label, value),) for value in values)


def _gauge(name: str, help: str, *aliases: str, series: tuple[Labels, ...] = ((),)) -> Family:
    return Family(name, "gauge", help, series, aliases=aliases)


def _counter(name: str, help: str, *aliases: str, series: tuple[Labels, ...] = ((),)) -> Family:
    return Family(name, "counter", help, series, aliases=aliases)


def _histogram(name: str, help: str, edges: tuple[float, ...], *aliases: str, live: bool = False) -> Family:
    """`live`: kept finely enough for the percentiles of the live view."""
    fine = ladder(edges) if live else ()
    return Family(name, "histogram", help, edges=tuple(map(float, edges)), fine=fine, aliases=aliases)


_ROUTES = tuple(product((("handler", route) for route in ROUTES), (("method", method) for method in METHODS)))

FAMILIES = (
    _gauge(
        "vllm:num_requests_running", "Requests in the steps the engine runs.", "headrace_requests_running"
    ),
    _gauge("vllm:num_requests_waiting", "Requests that wait to be run.", "headrace_requests_waiting"),
    _gauge(
        "vllm:num_requests_waiting_by_reason",
        "Requests that wait, by what they wait for.",
        series=_labelled("reason", "capacity", "deferred"),
    ),
    _gauge(
        "vllm:kv_cache_usage_perc",
        "Part of the KV blocks in use, 0 to 1.",
        *("vllm:gpu_cache_usage_perc", "headrace_kv_usage_ratio"),
    ),
    _gauge(
        "vllm:engine_sleep_state",
        "1 for the state the engine is in.",
        series=_labelled("sleep_state", "awake", "weights_offloaded", "discard_all"),
    ),
    _gauge("headrace_streams", "Answers that front processes hold open."),
    _gauge("headrace_step_rows", "Requests in the latest step."),
    _gauge("headrace_step_tokens", "Tokens computed in the latest step."),
    _counter("vllm:prompt_tokens_total", "Prompt tokens of requests that got their first token."),
    _counter("vllm:generation_tokens_total", "Tokens generated."),
    _counter(
        "vllm:prompt_tokens_by_source_total",
        "Prompt tokens by where their KV came from.",
        series=_labelled("source", "local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    _counter("vllm:prompt_tokens_cached_total", "Prompt tokens found in the prefix cache."),
    _counter(
        "vllm:prompt_tokens_cached_by_source_total",
        "Prompt tokens found in the prefix cache, by where that is kept.",
        series=_labelled("source", "device"),
    ),
    _counter(
        "vllm:prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache.",
        "vllm:gpu_prefix_cache_queries_total",
    ),
    _counter(
        "vllm:prefix_cache_hits_total", "Prompt tokens found there.", "vllm:gpu_prefix_cache_hits_total"
    ),
    _counter("vllm:external_prefix_cache_queries_total", "Tokens looked up in other engines' KV."),
    _counter("vllm:external_prefix_cache_hits_total", "Tokens found there."),
    _counter("vllm:mm_cache_queries_total", "Media looked up in the cache of encoded media."),
    _counter("vllm:mm_cache_hits_total", "Media found there."),
    _counter("vllm:num_preemptions_total", "Times a running request lost its KV blocks."),
    _counter(
        "vllm:request_success_total",
        "Requests that ended, by how.",
        series=_labelled("finished_reason", *ENDINGS),
    ),
    _counter(
        "vllm:admission_rejections_total",
        "Requests refused because a queue was full.",
        series=_labelled("reason", *REJECTIONS),
    ),
    _counter(
        "headrace_requests_total",
        "Requests that ended or were refused, by API and cause.",
        series=tuple((("kind", kind), ("cause", cause)) for kind, cause in product(KINDS, CAUSES)),
    ),
    _counter("headrace_recomputed_tokens_total", "Tokens computed again after a preemption."),
    _counter(
        "vllm:spec_decode_num_drafts_total",
        "Times that tokens of an answer were guessed.",
        "headrace_drafts_total",
    ),
    _counter("vllm:spec_decode_num_draft_tokens_total", "Tokens guessed.", "headrace_draft_tokens_total"),
    _counter(
        "vllm:spec_decode_num_accepted_tokens_total",
        "Tokens guessed that were right.",
        "headrace_accepted_draft_tokens_total",
    ),
    _counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        "Tokens guessed that were right, by their place behind the last known token.",
        series=_labelled("position", *map(str, range(GUESSES))),
    ),
    _counter("headrace_steps_total", "Steps of the engine."),
    _counter("headrace_step_seconds_total", "Time the engine spent in steps."),
    _counter("headrace_step_rows_total", "Requests in steps, summed over steps."),
    _counter("headrace_engine_restarts_total", "Times the engine process was started again."),
    _counter("headrace_engine_faults_total", "Steps that failed because of a request."),
    _counter("headrace_resumed_requests_total", "Requests carried over to a new engine process."),
    _histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", TTFT, live=True),
    _histogram(
        "vllm:inter_token_latency_seconds",
        "Between tokens of one request, as they reach the front process.",
        TOKEN,
        "vllm:time_per_output_token_seconds",
        live=True,
    ),
    _histogram(
        "vllm:request_time_per_output_token_seconds",
        "Per request: from first to last token over the tokens after the first.",
        TOKEN,
    ),
    _histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", SPAN),
    _histogram("vllm:request_queue_time_seconds", "From arrival to the first step.", SPAN, live=True),
    _histogram("vllm:request_inference_time_seconds", "From the first step to the end.", SPAN),
    _histogram("vllm:request_prefill_time_seconds", "From the first step to the first token.", SPAN),
    _histogram("vllm:request_decode_time_seconds", "From the first token to the last.", SPAN),
    _histogram("vllm:request_prompt_tokens", "Prompt tokens per request.", COUNTS),
    _histogram("vllm:request_generation_tokens", "Generated tokens per request.", COUNTS),
    _histogram(
        "vllm:request_max_num_generation_tokens", "Tokens of the longest answer of a request.", COUNTS
    ),
    _histogram("vllm:request_params_max_tokens", "The max_tokens of requests.", COUNTS),
    _histogram("vllm:request_params_n", "The n of requests.", ANSWERS),
    _histogram(
        "vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed, without those cached.", COUNTS
    ),
    _histogram("vllm:request_num_preemptions", "Preemptions per request.", EVICTIONS),
    _histogram("vllm:iteration_tokens_total", "Tokens computed in a step.", EDGES),
    Family(
        "http_requests_total",
        "counter",
        "HTTP requests by route.",
        tuple((*labels, ("status", status)) for labels, status in product(_ROUTES, STATUSES)),
        bare=True,
    ),
    Family(
        "http_request_duration_seconds",
        "histogram",
        "From the request's head to the answer's end.",
        _ROUTES,
        edges=(0.1, 0.5, 1.0),
        bare=True,
    ),
)

SPANS = {
    "tpot": "vllm:request_time_per_output_token_seconds",
    "total": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
    "inference": "vllm:request_inference_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
    "prompt_tokens": "vllm:request_prompt_tokens",
    "generated": "vllm:request_generation_tokens",
    "longest": "vllm:request_max_num_generation_tokens",
    "max_tokens": "vllm:request_params_max_tokens",
    "n": "vllm:request_params_n",
    "computed": "vllm:request_prefill_kv_computed_tokens",
    "evictions": "vllm:request_num_preemptions",
}
"""What is known of a request at its end -> the histogram that counts it."""
