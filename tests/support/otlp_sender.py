"""A program's telemetry, by the real SDK, sent to a running Collector."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_pgpool.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from tests.support.collector import Collector

ORDINARY = {names.ATTR_WAIT_TIME: 0.05, names.ATTR_RETRIES: 0, names.ATTR_LONG_HOLD: False}


class Program:
    """A program's telemetry, sent to one Collector."""

    def __init__(self, grpc: str) -> None:
        where: dict[str, Any] = {"endpoint": grpc, "insecure": True}
        self.traces = TracerProvider()
        self.traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**where), max_queue_size=10_000))
        self.meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(**where))])
        self.logs = LoggerProvider()
        self.logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(**where)))

    def span(
        self, name: str, attributes: dict[str, Any], *, scope: str = names.SCOPE, parent: Context | None = None
    ) -> Span:
        return self.traces.get_tracer(scope).start_span(name, parent, attributes=attributes)

    def checkout(self, parent: Context | None = None, **changed: Any) -> str:
        """One checkout's span, ended; the id of its trace."""
        changes = {f"otel_pgpool.{name}": value for name, value in changed.items()}
        span = self.span(names.SPAN_CHECKOUT, {**ORDINARY, **changes}, parent=parent)
        span.end()
        return trace_id(span)

    def log(self, scope: str, body: str, attributes: dict[str, Any]) -> None:
        self.logs.get_logger(scope).emit(body=body, attributes=attributes)

    def flush(self) -> None:
        for provider in (self.traces, self.meters, self.logs):
            assert provider.force_flush()


@contextmanager
def program(collector: Collector) -> Iterator[Program]:
    made = Program(collector.grpc)
    yield made
    for provider in (made.traces, made.meters, made.logs):
        provider.shutdown()


def trace_id(span: Span) -> str:
    return format(span.get_span_context().trace_id, "032x")
