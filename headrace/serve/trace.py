"""Traces for OpenTelemetry: one span per request, below the one its `traceparent` names. Needs the extra `otel`.

Attributes are those of the GenAI conventions and those that vLLM writes. Nothing of a prompt or an answer is in them.
"""

from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any

from headrace.base.errors import Refused
from headrace.serve.answer import Answer
from headrace.serve.record import Watcher

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


OPERATIONS = {"chat": "chat", "completion": "text_completion", "response": "chat"}
FAILURES = frozenset({"error", "timeout", "abort"})


class Tracer(Watcher):
    """A watcher that makes spans. Raises Refused where the packages are missing.

    `exporter` None sends them to `endpoint` (an OTLP/HTTP URL, such as http://127.0.0.1:4318/v1/traces); sampling,
    headers and batching follow the SDK's own settings. A thread of the SDK sends them: no request waits for it.
    """

    def __init__(self, model: str, endpoint: str | None = None, *, exporter: "SpanExporter | None" = None):
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as fault:
            raise Refused(
                f"traces need a package that is not installed: {fault.name}",
                param="serve.traces",
                hint="pip install '.[otel]'",
            ) from fault
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))
        else:
            processor = SimpleSpanProcessor(exporter)
        resource = Resource.create({SERVICE_NAME: "headrace"})
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        self.model = model
        self.tracer = self.provider.get_tracer("headrace")
        self._propagator = TraceContextTextMapPropagator()
        self._offset = time_ns() - monotonic_ns()

    def ended(self, answer: Answer) -> None:
        """Make the span of a request that is over."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = OPERATIONS.get(answer.kind, "chat")
        parent = self._propagator.extract({"traceparent": answer.trace}) if answer.trace else None
        span = self.tracer.start_span(
            f"{operation} {self.model}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=self._moment(answer.arrived),
            attributes=attributes(answer, operation, self.model),
        )
        for name, at in (("scheduled", answer.scheduled), ("first token", answer.first)):
            if at is not None:
                span.add_event(name, timestamp=self._moment(at))
        if answer.cause in FAILURES:
            span.set_status(Status(StatusCode.ERROR, answer.cause))
        span.end(self._moment(answer.arrived + answer.spans.total))

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()

    def _moment(self, monotonic: float) -> int:
        """Unix nanoseconds of a moment of the monotonic clock."""
        return int(monotonic * 1e9) + self._offset


def attributes(answer: Answer, operation: str, model: str) -> dict[str, Any]:
    """What a span says of a request: GenAI conventions first, then the names that vLLM uses."""
    spans, params = answer.spans, answer.params
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "headrace",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": answer.id,
        "gen_ai.response.finish_reasons": [answer.cause],
        "gen_ai.request.max_tokens": answer.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": answer.n,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.generated,
        "gen_ai.usage.cache_read.input_tokens": answer.cached,
        "error.type": answer.cause if answer.cause in FAILURES else None,
        "gen_ai.request.id": answer.name or answer.id,
        "gen_ai.request.n": answer.n,
        "gen_ai.usage.prompt_tokens": answer.prompt_tokens,
        "gen_ai.usage.completion_tokens": answer.generated,
        "gen_ai.latency.time_in_queue": spans.queue,
        "gen_ai.latency.time_to_first_token": spans.ttft,
        "gen_ai.latency.e2e": spans.total,
        "gen_ai.latency.time_in_model_prefill": spans.prefill,
        "gen_ai.latency.time_in_model_decode": spans.decode,
        "gen_ai.latency.time_in_model_inference": spans.inference,
        "headrace.preemptions": answer.evictions,
        "http.response.status_code": answer.status,
    }
    return {name: value for name, value in found.items() if value is not None}
