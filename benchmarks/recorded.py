"""Providers that record spans and metrics as a program in production would, and drop what they export."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import SpanProcessor


class NullExporter(SpanExporter):
    """An exporter that drops spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        return SpanExportResult.SUCCESS


class Recorded:
    """The providers of one contestant."""

    def __init__(self, processor: SpanProcessor) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(processor)

    def settle(self) -> None:
        """Export all spans, and collect garbage, so that the next slice does not do so."""
        self.tracers.force_flush()
        gc.collect()

    def shut_down(self) -> None:
        """End the providers' threads."""
        self.tracers.shutdown()
        self.meters.shutdown()

    def records(self) -> list[tuple[Any, ...]]:
        """Return the data of the two histograms: name, unit, boundaries, attributes, count, exemplars with a trace."""
        data = self.reader.get_metrics_data()
        return sorted(
            (metric.name, metric.unit, point.explicit_bounds, dict(point.attributes or {}), point.count, traced(point))
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name.endswith(("wait_time", "use_time"))
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        )


def traced(point: HistogramDataPoint) -> int:
    """Return how many exemplars of a point have a trace."""
    return sum(exemplar.trace_id is not None for exemplar in point.exemplars)
