"""The SDK's processors and metric reader, with counts and with a shutdown that ends in time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.telemetry.sdk_internals import shutdown_batch_processor

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadWriteLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

SDK_LIMIT = 30.0
"""Seconds that the SDK itself gives a shutdown."""


class ShutdownDeadline:
    """The time at which the OTLP processors give up; the SDK's own limit until ``Providers.shutdown()`` sets one."""

    at = math.inf

    def millis(self) -> float:
        """Return the milliseconds that are left."""
        return min(max(0.0, self.at - monotonic()), SDK_LIMIT) * 1000


class _BoundedProcessor:
    """The part that both batch processors have in common: the counting exporter, and a shutdown by a deadline.

    The parameter ``exporter`` is a `CountingExporter`, which the SDK's types do not know.
    """

    def __init__(self, exporter: Any, deadline: ShutdownDeadline) -> None:
        super().__init__(exporter)  # type: ignore[call-arg]  # of the SDK's class, which comes next
        self._counting_exporter = exporter
        self._deadline = deadline

    def shutdown(self) -> None:
        """Export what is queued until the deadline, and stop."""
        shutdown_batch_processor(self, super().shutdown, int(self._deadline.millis()))  # type: ignore[misc]  # as above


class OtlpSpanProcessor(_BoundedProcessor, BatchSpanProcessor):
    """A batch processor that counts sampled spans and shuts down by a deadline."""

    def on_end(self, span: ReadableSpan) -> None:
        """Count the span if it is sampled, and queue it."""
        if span.context and span.context.trace_flags.sampled:
            self._counting_exporter.record()
        super().on_end(span)


class OtlpLogProcessor(_BoundedProcessor, BatchLogRecordProcessor):
    """A batch processor that counts log records and shuts down by a deadline."""

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Count the record, and queue it."""
        self._counting_exporter.record()
        super().on_emit(log_record)


class OtlpMetricReader(PeriodicExportingMetricReader):
    """A metric reader that shuts down by a deadline."""

    def __init__(self, exporter: Any, deadline: ShutdownDeadline) -> None:
        super().__init__(exporter)
        self._deadline = deadline

    def shutdown(self, timeout_millis: float = SDK_LIMIT * 1000, **kwargs: Any) -> None:
        """Collect and export once more until the deadline, and stop."""
        super().shutdown(min(timeout_millis, self._deadline.millis()), **kwargs)
