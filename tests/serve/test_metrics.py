"""Names, labels, buckets and numbers of /metrics."""

import functools
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Sample
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.base.errors import Busy, Refused, Unreachable
from headrace.engine import tally
from headrace.engine.request import Event
from headrace.engine.stream import Update
from headrace.serve import families, metrics, series
from headrace.serve.metrics import LAYOUT, Metrics
from headrace.serve.wire import Stats
from tests.serve.watched import FACTS, answer, finish, over, token

MODEL = {"model_name": "m", "engine": "0"}

# What dashboards, autoscalers and routers made for vLLM ask for, as they ask for it.
GAUGES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:engine_sleep_state",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
}
COUNTERS = {
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prompt_tokens_by_source",
    "vllm:prompt_tokens_cached",
    "vllm:prompt_tokens_cached_by_source",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:gpu_prefix_cache_queries",
    "vllm:gpu_prefix_cache_hits",
    "vllm:external_prefix_cache_queries",
    "vllm:external_prefix_cache_hits",
    "vllm:mm_cache_queries",
    "vllm:mm_cache_hits",
    "vllm:num_preemptions",
    "vllm:request_success",
    "vllm:admission_rejections",
    "vllm:spec_decode_num_drafts",
    "vllm:spec_decode_num_draft_tokens",
    "vllm:spec_decode_num_accepted_tokens",
    "vllm:spec_decode_num_accepted_tokens_per_pos",
}
LATENCY = (1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, *LATENCY)
SPAN = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, *LATENCY),
        *(160, 640, 2560),
    ),
    "vllm:inter_token_latency_seconds": TOKEN,
    "vllm:time_per_output_token_seconds": TOKEN,
    "vllm:request_time_per_output_token_seconds": TOKEN,
    "vllm:e2e_request_latency_seconds": SPAN,
    "vllm:request_queue_time_seconds": SPAN,
    "vllm:request_inference_time_seconds": SPAN,
    "vllm:request_prefill_time_seconds": SPAN,
    "vllm:request_decode_time_seconds": SPAN,
    "vllm:request_prompt_tokens": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
    "vllm:request_generation_tokens": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
    "vllm:request_max_num_generation_tokens": (1, 2, 5, 10, 1000),
    "vllm:request_params_n": (1, 2, 5, 10, 20),
    "vllm:request_params_max_tokens": (1, 2, 5, 10, 1000),
    "vllm:request_prefill_kv_computed_tokens": (1, 2, 5, 10, 1000),
    "vllm:request_num_preemptions": (1, 2, 5),
    "vllm:iteration_tokens_total": (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
}


@pytest.fixture
def counted(clock: list[float]) -> Metrics:
    found = Metrics("m")
    found.met(FACTS)
    return found


@functools.lru_cache(1)
def samples(text: bytes) -> list[Sample]:
    return [sample for family in parse(text.decode()) for sample in family.samples]


def value(of: Metrics, name: str, **labels: str) -> float:
    """One sample, asked for as Prometheus would."""
    of._page._made = -series.LAZY
    named = [sample for sample in samples(of.render()) if sample.name == name]
    (found,) = [sample.value for sample in named if labels.items() <= sample.labels.items()]
    return found


def test_every_name_that_vllm_has_is_there_with_its_type(counted: Metrics):
    kinds = {family.name: family.type for family in parse(counted.render().decode())}
    assert {name: kinds.get(name) for name in GAUGES} == dict.fromkeys(GAUGES, "gauge")
    assert {name: kinds.get(name) for name in COUNTERS} == dict.fromkeys(COUNTERS, "counter")
    assert {name: kinds.get(name) for name in HISTOGRAMS} == dict.fromkeys(HISTOGRAMS, "histogram")
    assert "process_resident_memory_bytes" in kinds
    assert "headrace_requests" in kinds


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_edges_are_those_of_vllm_and_finer_ones(counted: Metrics, name: str):
    (found,) = [family for family in parse(counted.render().decode()) if family.name == name]
    edges = [sample.labels["le"] for sample in found.samples if sample.name.endswith("_bucket")]
    assert set(HISTOGRAMS[name]) <= {float(edge) for edge in edges}
    assert edges[-1] == "+Inf"
    assert [float(edge) for edge in edges] == sorted(float(edge) for edge in edges)
    if name.endswith("_seconds"):
        assert sum(float(edge) < 0.01 for edge in edges) >= 3, "finer than 10 ms"


def test_every_series_of_vllm_has_its_labels(counted: Metrics):
    extra = {
        "vllm:request_success_total": "finished_reason",
        "vllm:prompt_tokens_by_source_total": "source",
        "vllm:prompt_tokens_cached_by_source_total": "source",
        "vllm:num_requests_waiting_by_reason": "reason",
        "vllm:admission_rejections_total": "reason",
        "vllm:engine_sleep_state": "sleep_state",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total": "position",
    }
    for family in parse(counted.render().decode()):
        for sample in family.samples:
            if not sample.name.startswith("vllm:") or sample.name.endswith("_info"):
                continue
            labels = dict(sample.labels)
            assert (labels.pop("le", None) is not None) == sample.name.endswith("_bucket")
            if (name := extra.get(sample.name)) is not None:
                assert labels.pop(name)
            assert labels == MODEL, sample.name


def test_no_series_is_there_twice(counted: Metrics):
    lines = [line.rpartition(" ")[0] for line in counted.render().decode().splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    names = [line.split()[2] for line in counted.render().decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_the_cache_is_described_for_routers(counted: Metrics):
    assert value(counted, "vllm:cache_config_info", block_size="16", num_gpu_blocks="512", **MODEL) == 1
    assert value(counted, "vllm:lora_requests_info", max_lora="0", running_lora_adapters="") > 1e9


def test_a_request_from_its_start_to_its_end(counted: Metrics, clock: list[float]):
    one = answer(prompt=40)
    counted.submitted(one)
    assert value(counted, "headrace_streams") == 1
    clock[0] += 0.08
    one.scheduled = clock[0] - 0.05
    one.first = clock[0]
    token(counted, one, cached=16)
    for gap in (0.004, 0.03, 0.004):
        clock[0] += gap
        one.last = clock[0]
        token(counted, one, cached=16)
    counted.updated(one, 0, Update(finish="length"), Event(one.id, None, "length"))  # an end without a token
    finish(one, "length", counted)
    assert value(counted, "headrace_streams") == 0
    assert value(counted, "vllm:prompt_tokens_total") == 40
    assert value(counted, "vllm:prompt_tokens_cached_total") == 16
    assert value(counted, "vllm:prompt_tokens_cached_by_source_total", source="device") == 16
    assert value(counted, "vllm:prompt_tokens_by_source_total", source="local_compute") == 24
    assert value(counted, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 16
    assert value(counted, "vllm:generation_tokens_total") == 4
    assert value(counted, "vllm:request_success_total", finished_reason="length") == 1
    assert value(counted, "headrace_requests_total", kind="chat", cause="length") == 1
    assert value(counted, "vllm:time_to_first_token_seconds_sum") == pytest.approx(0.08)
    assert value(counted, "vllm:inter_token_latency_seconds_count") == 3
    assert value(counted, "vllm:inter_token_latency_seconds_bucket", le="0.005") == 2
    assert value(counted, "vllm:request_queue_time_seconds_sum") == pytest.approx(0.03)
    assert value(counted, "vllm:request_prefill_time_seconds_sum") == pytest.approx(0.05)
    assert value(counted, "vllm:request_decode_time_seconds_sum") == pytest.approx(0.038)
    assert value(counted, "vllm:request_inference_time_seconds_sum") == pytest.approx(0.088)
    assert value(counted, "vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.038 / 3)
    assert value(counted, "vllm:request_prefill_kv_computed_tokens_sum") == 24
    assert value(counted, "vllm:request_max_num_generation_tokens_sum") == 4
    assert not counted.open


def test_several_answers_of_a_request_are_paced_each_for_itself(counted: Metrics, clock: list[float]):
    one = answer(n=2)
    counted.submitted(one)
    for index, gap in ((0, 0.1), (1, 0.1), (0, 0.1), (1, 0.1), (0, 0.1)):
        clock[0] += gap
        token(counted, one, index)
    assert value(counted, "vllm:time_to_first_token_seconds_count") == 2
    assert value(counted, "vllm:inter_token_latency_seconds_sum") == pytest.approx(0.6)
    finish(one, "stop", counted)
    assert value(counted, "vllm:request_params_n_sum") == 2
    assert value(counted, "vllm:request_max_num_generation_tokens_sum") == 3
    assert value(counted, "vllm:request_generation_tokens_sum") == 5


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("stop", "stop"), ("length", "length"), ("timeout", "abort"), ("abort", "abort"), ("error", "error")],
)
def test_every_ending_is_counted_once(counted: Metrics, cause: str, reason: str):
    one = over(cause=cause)
    counted.submitted(one)
    counted.ended(one)
    for known in families.ENDINGS:
        assert value(counted, "vllm:request_success_total", finished_reason=known) == (known == reason)
    assert value(counted, "headrace_requests_total", kind="chat", cause=cause) == 1
    whole = cause in ("stop", "length")
    assert value(counted, "vllm:e2e_request_latency_seconds_count") == whole, "only of what ran to its end"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(Busy("full"), "busy"), (Refused("no"), "refused"), (Unreachable("down"), "unavailable")],
)
def test_what_is_refused_is_counted_by_why(counted: Metrics, fault: Exception, cause: str):
    counted.refused("something new", fault, "x")  # type: ignore[arg-type]
    assert value(counted, "headrace_requests_total", kind="other", cause=cause) == 1
    rejected = value(counted, "vllm:admission_rejections_total", reason="max_num_queued_reqs")
    assert rejected == (cause == "busy")


@pytest.mark.parametrize(
    ("limit", "reason"), [("requests", "max_num_queued_reqs"), ("tokens", "max_num_queued_tokens")]
)
def test_which_limit_refused_is_told(counted: Metrics, limit: str, reason: str):
    counted.refused("chat", Busy("full", limit=limit), "x")
    for known in families.REJECTIONS:
        assert value(counted, "vllm:admission_rejections_total", reason=known) == (known == reason)


def test_the_engine_s_numbers_are_shown(counted: Metrics):
    sizes = [0] * len(tally.Tally().sizes)
    sizes[0], sizes[3], sizes[-1] = 2, 1, 22
    counted.measured(
        Stats(running=3, waiting=2, kv_used=0.5, evictions=1, steps=3, sizes=sizes, prompt_tokens=64)
    )
    assert value(counted, "vllm:num_requests_running") == 3
    assert value(counted, "headrace_requests_waiting") == 2
    assert value(counted, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(counted, "vllm:kv_cache_usage_perc") == 0.5
    assert value(counted, "vllm:num_preemptions_total") == 1
    assert value(counted, "vllm:prefix_cache_queries_total") == 64
    assert value(counted, "vllm:iteration_tokens_total_bucket", le="1.0") == 2
    assert value(counted, "vllm:iteration_tokens_total_count") == 3
    assert value(counted, "vllm:iteration_tokens_total_sum") == 22


def test_counters_never_fall_when_the_engine_starts_again(counted: Metrics):
    sizes = [4] * len(tally.Tally().sizes)
    counted.measured(Stats(steps=3, evictions=7, prompt_tokens=1000, sizes=sizes))
    counted.lost()
    counted.measured(Stats(steps=9, evictions=1, prompt_tokens=10, sizes=[1] * len(sizes)))
    counted.measured(Stats(steps=11, evictions=1, prompt_tokens=20, sizes=[2] * len(sizes)))
    assert value(counted, "headrace_steps_total") == 14
    assert value(counted, "headrace_engine_restarts_total") == 1
    assert value(counted, "vllm:num_preemptions_total") == 8
    assert value(counted, "vllm:prefix_cache_queries_total") == 1020
    assert value(counted, "vllm:iteration_tokens_total_sum") == 6


def test_right_guesses_are_counted_by_their_place(counted: Metrics):
    counts = tally.Counts()
    for right in (3, 0, 1, tally.GUESSES + 5):
        counts.accept(right)
    counted.measured(Stats(accepted_tokens=counts.accepted_tokens, accepted_at=counts.accepted_at))
    name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [value(counted, name, position=str(place)) for place in (0, 1, 2, 3, 15)] == [3, 2, 2, 1, 1]
    assert value(counted, "vllm:spec_decode_num_accepted_tokens_total") == tally.GUESSES + 9


def test_the_steps_sizes_have_the_same_edges_on_both_sides():
    assert LAYOUT.family("vllm:iteration_tokens_total").edges == tally.EDGES
    assert len(LAYOUT.family("vllm:spec_decode_num_accepted_tokens_per_pos_total").series) == tally.GUESSES
    assert LAYOUT.family("vllm:iteration_tokens_total").width == len(tally.Tally().sizes)


def test_all_front_processes_are_counted_together(tmp_path: Path, clock: list[float]):
    fronts = [Metrics("m", folder=tmp_path, index=n) for n in range(2)]
    for n, front in enumerate(fronts):
        front.met(FACTS)
        for _ in range(n + 1):
            one = answer()
            front.submitted(one)
            token(front, one)
        front.measured(Stats(running=3, steps=5))
        front.lost()
    clock[0] += metrics.KEEP
    for front in fronts:
        assert value(front, "vllm:generation_tokens_total") == 3
        assert value(front, "vllm:num_requests_running") == 3, "the engine is counted once"
        assert value(front, "headrace_steps_total") == 5
        assert value(front, "headrace_engine_restarts_total") == 1
    assert fronts[0].totals().tolist() == fronts[1].totals().tolist()


def test_a_front_that_is_started_again_goes_on_counting(tmp_path: Path, clock: list[float]):
    def begun() -> Metrics:
        front, one = Metrics("m", folder=tmp_path), answer()
        front.submitted(one)
        token(front, one)
        return front

    begun()
    clock[0] += metrics.KEEP
    front = begun()
    assert value(front, "vllm:generation_tokens_total") == 2
    assert value(front, "headrace_streams") == 1, "what the old one held open is gone with it"


def test_a_front_whose_folder_was_tidied_away_tells_of_itself(tmp_path: Path, clock: list[float]):
    front, one = Metrics("m", folder=tmp_path), answer()
    front.submitted(one)
    token(front, one)
    (tmp_path / "front-0.sheet").unlink()
    clock[0] += metrics.KEEP
    assert value(front, "vllm:generation_tokens_total") == 1


def test_requests_by_route_cannot_make_series(counted: Metrics):
    assert not any(sample.name.startswith("http_") for sample in samples(counted.render()))
    counted.http("/v1/models", "GET", 200, 0.2)
    counted.http("/no/such/path", "BREW", 418, 0.01)
    counted.http("/another", "SING", 418, 0.01)
    assert value(counted, "http_requests_total", handler="/v1/models", method="GET", status="2xx") == 1
    assert value(counted, "http_requests_total", handler="none", method="other", status="4xx") == 2
    assert {one.labels["handler"] for one in samples(counted.render()) if one.name.startswith("http_")} == {
        *("/v1/models", "none")
    }, "what was never asked for is not there, and what clients think up has no name"
    bucket = value(
        counted, "http_request_duration_seconds_bucket", handler="/v1/models", method="GET", le="0.5"
    )
    assert bucket == 1


def test_an_engine_that_is_not_known_yet_leaves_only_its_own_series_out():
    text = Metrics("m").render(ready=False).decode()
    assert "vllm:cache_config_info" not in text
    assert 'headrace_ready{engine="0",model_name="m"} 0' in text
    assert list(parse(text))
