"""Spans of requests, as a collector gets them."""

import sys
from collections.abc import Iterator
from time import monotonic, time

import pytest

from headrace.base.errors import Refused
from headrace.serve.trace import Tracer
from tests.serve.watched import over

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def sent() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(sent: InMemorySpanExporter) -> Iterator[Tracer]:
    made = Tracer("smollm2", exporter=sent)
    yield made
    made.close()


def test_a_span_is_below_the_one_its_client_named(tracer: Tracer, sent: InMemorySpanExporter):
    tracer.ended(over(trace=PARENT))
    (span,) = sent.get_finished_spans()
    assert span.name == "chat smollm2"
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


@pytest.mark.parametrize("said", [None, "nonsense", "00-0-0-01", "ff" + PARENT[2:]])
def test_without_a_valid_parent_a_trace_begins_here(
    tracer: Tracer, sent: InMemorySpanExporter, said: str | None
):
    tracer.ended(over(trace=said))
    (span,) = sent.get_finished_spans()
    assert span.parent is None


def test_a_parent_that_is_not_sampled_keeps_its_child_out(tracer: Tracer, sent: InMemorySpanExporter):
    tracer.ended(over(trace=PARENT[:-1] + "0"))
    assert sent.get_finished_spans() == ()


def test_attributes_are_those_of_the_conventions_and_of_vllm(tracer: Tracer, sent: InMemorySpanExporter):
    tracer.ended(over(name="nightly"))
    (span,) = sent.get_finished_spans()
    said = dict(span.attributes or {})
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == "smollm2"
    assert said["gen_ai.request.temperature"] == 0.7
    assert said["gen_ai.request.max_tokens"] == 100
    assert said["gen_ai.response.finish_reasons"] == ("stop",)
    assert said["gen_ai.usage.input_tokens"] == said["gen_ai.usage.prompt_tokens"] == 40
    assert said["gen_ai.usage.output_tokens"] == said["gen_ai.usage.completion_tokens"] == 11
    assert said["gen_ai.usage.cache_read.input_tokens"] == 16
    assert said["gen_ai.request.id"] == "nightly"
    assert said["gen_ai.latency.time_in_queue"] == pytest.approx(0.25)
    assert said["gen_ai.latency.time_to_first_token"] == pytest.approx(0.5)
    assert said["gen_ai.latency.e2e"] == pytest.approx(2.0)
    assert said["gen_ai.latency.time_in_model_inference"] == pytest.approx(1.25)
    assert "error.type" not in said


def test_moments_are_those_of_the_wall_clock(tracer: Tracer, sent: InMemorySpanExporter):
    now = monotonic()
    tracer.ended(over(arrived=now - 2, scheduled=now - 1.9, first=now - 1.5, last=now - 0.1, ended=now))
    (span,) = sent.get_finished_spans()
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time / 1e9 == pytest.approx(
        time(), abs=60
    )  # a busy machine may be late; another clock is far off
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2, abs=1e-6)
    assert [event.name for event in span.events] == ["scheduled", "first token"]


@pytest.mark.parametrize("cause", ["error", "timeout", "abort"])
def test_what_went_wrong_is_an_error(tracer: Tracer, sent: InMemorySpanExporter, cause: str):
    tracer.ended(over(cause=cause, kind="completion"))
    (span,) = sent.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == cause
    assert span.name == "text_completion smollm2"


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Refused, match="not installed") as caught:
        Tracer("m", "http://127.0.0.1:4318/v1/traces")
    assert "[otel]" in caught.value.hint
