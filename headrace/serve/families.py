"""Every metric the server exports: vLLM's names, types, labels and bucket edges, and ours where they say more.

Edges below vLLM's finest are added to its histograms, which leaves every query over them as it was.
"""

from itertools import product
from math import log10

from headrace.serve.series import Family, Labels

ENDINGS = ("stop", "length", "abort", "error")
"""vLLM's finished_reason."""

CAUSES = ("stop", "length", "tool_calls", "abort", "timeout", "error", "busy", "refused", "unavailable")
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
    "/metrics",
    "none",
)
"""Routes that are counted by name; every other one is `none`, so that no client can add series."""

FINE_TTFT = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075)
TTFT = (
    *FINE_TTFT,
    *(0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
FINE_TOKEN = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075)
TOKEN = (
    *FINE_TOKEN,
    *(0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20),
    *(40, 80),
)
FINE_SPAN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SPAN = (
    *FINE_SPAN,
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
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


def _http() -> tuple[Labels, ...]:
    return tuple(
        (("handler", route), ("method", method), ("status", status))
        for route in ROUTES
        for method, status in product(METHODS, STATUSES)
    )


_GAUGES = (
    Family(
        "vllm:num_requests_running",
        "gauge",
        "Requests in the steps the engine runs.",
        aliases=("headrace_requests_running",),
    ),
    Family(
        "vllm:num_requests_waiting",
        "gauge",
        "Requests that wait to be run.",
        aliases=("headrace_requests_waiting",),
    ),
    Family(
        "vllm:num_requests_waiting_by_reason",
        "gauge",
        "Requests that wait, by what they wait for.",
        _labelled("reason", "capacity", "deferred"),
    ),
    Family(
        "vllm:kv_cache_usage_perc",
        "gauge",
        "Part of the KV blocks in use, 0 to 1.",
        aliases=("vllm:gpu_cache_usage_perc", "headrace_kv_usage_ratio"),
    ),
    Family(
        "vllm:engine_sleep_state",
        "gauge",
        "1 for the state the engine is in.",
        _labelled("sleep_state", "awake", "weights_offloaded", "discard_all"),
    ),
    Family("headrace_streams", "gauge", "Answers that front processes hold open."),
    Family("headrace_step_rows", "gauge", "Requests in the latest step."),
    Family("headrace_step_tokens", "gauge", "Tokens computed in the latest step."),
)
_COUNTERS = (
    Family("vllm:prompt_tokens_total", "counter", "Prompt tokens of requests that got their first token."),
    Family("vllm:generation_tokens_total", "counter", "Tokens generated."),
    Family(
        "vllm:prompt_tokens_by_source_total",
        "counter",
        "Prompt tokens by where their KV came from.",
        _labelled("source", "local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    Family("vllm:prompt_tokens_cached_total", "counter", "Prompt tokens found in the prefix cache."),
    Family(
        "vllm:prefix_cache_queries_total",
        "counter",
        "Prompt tokens looked up in the prefix cache.",
        aliases=("vllm:gpu_prefix_cache_queries_total",),
    ),
    Family(
        "vllm:prefix_cache_hits_total",
        "counter",
        "Prompt tokens found there.",
        aliases=("vllm:gpu_prefix_cache_hits_total",),
    ),
    Family("vllm:external_prefix_cache_queries_total", "counter", "Tokens looked up in other engines' KV."),
    Family("vllm:external_prefix_cache_hits_total", "counter", "Tokens found there."),
    Family("vllm:mm_cache_queries_total", "counter", "Media looked up in the cache of encoded media."),
    Family("vllm:mm_cache_hits_total", "counter", "Media found there."),
    Family("vllm:num_preemptions_total", "counter", "Times a running request lost its KV blocks."),
    Family(
        "vllm:request_success_total",
        "counter",
        "Requests that ended, by how.",
        _labelled("finished_reason", *ENDINGS),
    ),
    Family(
        "vllm:admission_rejections_total",
        "counter",
        "Requests refused because a queue was full.",
        _labelled("reason", *REJECTIONS),
    ),
    Family(
        "headrace_requests_total",
        "counter",
        "Requests that ended or were refused, by API and cause.",
        tuple((("kind", kind), ("cause", cause)) for kind, cause in product(KINDS, CAUSES)),
    ),
    Family("headrace_recomputed_tokens_total", "counter", "Tokens computed again after a preemption."),
    Family(
        "vllm:spec_decode_num_drafts_total",
        "counter",
        "Times that tokens of an answer were guessed.",
        aliases=("headrace_drafts_total",),
    ),
    Family(
        "vllm:spec_decode_num_draft_tokens_total",
        "counter",
        "Tokens guessed.",
        aliases=("headrace_draft_tokens_total",),
    ),
    Family(
        "vllm:spec_decode_num_accepted_tokens_total",
        "counter",
        "Tokens guessed that were right.",
        aliases=("headrace_accepted_draft_tokens_total",),
    ),
    Family("headrace_steps_total", "counter", "Steps of the engine."),
    Family("headrace_step_seconds_total", "counter", "Time the engine spent in steps."),
    Family("headrace_step_rows_total", "counter", "Requests in steps, summed over steps."),
    Family("headrace_engine_restarts_total", "counter", "Times the engine process was started again."),
    Family("headrace_engine_faults_total", "counter", "Steps that failed because of a request."),
    Family("headrace_resumed_requests_total", "counter", "Requests carried over to a new engine process."),
)


def _seconds(
    name: str, help: str, edges: tuple[float, ...], *, live: bool = False, alias: str = ""
) -> Family:
    fine = ladder(edges) if live else ()
    return Family(name, "histogram", help, edges=edges, fine=fine, aliases=(alias,) if alias else ())


_TIMES = (
    _seconds("vllm:time_to_first_token_seconds", "From arrival to the first token.", TTFT, live=True),
    _seconds(
        "vllm:inter_token_latency_seconds",
        "Between tokens of one request, as they reach the front process.",
        TOKEN,
        live=True,
        alias="vllm:time_per_output_token_seconds",
    ),
    _seconds(
        "vllm:request_time_per_output_token_seconds",
        "Per request: from first to last token over the tokens after the first.",
        TOKEN,
    ),
    _seconds("vllm:e2e_request_latency_seconds", "From arrival to the end.", SPAN),
    _seconds("vllm:request_queue_time_seconds", "From arrival to the first step.", SPAN, live=True),
    _seconds("vllm:request_inference_time_seconds", "From the first step to the end.", SPAN),
    _seconds("vllm:request_prefill_time_seconds", "From the first step to the first token.", SPAN),
    _seconds("vllm:request_decode_time_seconds", "From the first token to the last.", SPAN),
)


def _numbers(name: str, help: str, edges: tuple[float, ...] = COUNTS) -> Family:
    return Family(name, "histogram", help, edges=tuple(map(float, edges)))


_SIZES = (
    _numbers("vllm:request_prompt_tokens", "Prompt tokens per request."),
    _numbers("vllm:request_generation_tokens", "Generated tokens per request."),
    _numbers("vllm:request_max_num_generation_tokens", "Tokens of the longest answer of a request."),
    _numbers("vllm:request_params_max_tokens", "The max_tokens of requests."),
    _numbers("vllm:request_params_n", "The n of requests.", ANSWERS),
    _numbers("vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed, without those cached."),
    _numbers("vllm:request_num_preemptions", "Preemptions per request.", EVICTIONS),
    _numbers("vllm:iteration_tokens_total", "Tokens computed in a step.", STEP_TOKENS),
)
_HTTP = (
    Family("http_requests_total", "counter", "HTTP requests by route.", _http(), bare=True),
    Family(
        "http_request_duration_seconds",
        "histogram",
        "From the request's head to the answer's end.",
        tuple((("handler", route), ("method", method)) for route, method in product(ROUTES, METHODS)),
        edges=(0.1, 0.5, 1.0),
        bare=True,
    ),
)
FAMILIES = (*_GAUGES, *_COUNTERS, *_TIMES, *_SIZES, *_HTTP)

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
