"""What OTLP carries, as flat Python values: each span, metric point and log record with its resource and its scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    name: str
    version: str
    schema_url: str


@dataclass(frozen=True)
class Event:
    name: str
    time: int
    attributes: Attributes


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """Times are nanoseconds since the epoch, ids are hexadecimal, and an id that is not set is ""."""

    name: str
    kind: str  # INTERNAL, CLIENT, ...
    trace_id: str
    span_id: str
    parent_span_id: str
    start: int
    end: int
    attributes: Attributes
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    status: str  # UNSET, OK, ERROR
    status_description: str
    scope: Scope
    resource: Attributes


@dataclass(frozen=True)
class Exemplar:
    value: float
    time: int
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class MetricPoint:
    """One data point of a metric; ``value`` is set for gauges and sums, the fields of buckets for histograms."""

    name: str
    unit: str
    description: str
    type: str  # gauge, sum, histogram, exponential_histogram
    monotonic: bool | None  # None where the type has no such property
    temporality: str | None  # CUMULATIVE, DELTA, None
    attributes: Attributes
    start: int
    time: int
    value: float | None
    bounds: tuple[float, ...]
    bucket_counts: tuple[int, ...]
    sum: float | None
    count: int | None
    exemplars: tuple[Exemplar, ...]
    scope: Scope
    resource: Attributes


@dataclass(frozen=True)
class LogRecord:
    severity_text: str
    severity_number: int
    body: Any
    attributes: Attributes
    event_name: str
    trace_id: str
    span_id: str
    time: int
    observed_time: int
    scope: Scope
    resource: Attributes


def spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_span_id=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    events=tuple(Event(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in span.events),
                    links=tuple(Link(k.trace_id.hex(), k.span_id.hex(), _attributes(k.attributes)) for k in span.links),
                    status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    status_description=span.status.message,
                    scope=_scope(scope.scope, scope.schema_url),
                    resource=_attributes(resource.resource.attributes),
                )


def metric_points(request: ExportMetricsServiceRequest) -> Iterator[MetricPoint]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    yield _metric_point(
                        metric, point, _scope(scope.scope, scope.schema_url), _attributes(resource.resource.attributes)
                    )


def _metric_point(metric: metrics_pb2.Metric, point: Any, scope: Scope, resource: Attributes) -> MetricPoint:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    temporality = getattr(data, "aggregation_temporality", None)
    in_buckets = hasattr(point, "bucket_counts")
    return MetricPoint(
        name=metric.name,
        unit=metric.unit,
        description=metric.description,
        type=kind,
        monotonic=getattr(data, "is_monotonic", None),
        temporality=temporality
        and metrics_pb2.AggregationTemporality.Name(temporality).removeprefix("AGGREGATION_TEMPORALITY_"),
        attributes=_attributes(point.attributes),
        start=point.start_time_unix_nano,
        time=point.time_unix_nano,
        value=_number(point) if hasattr(point, "as_int") else None,
        bounds=tuple(point.explicit_bounds) if in_buckets else (),
        bucket_counts=tuple(point.bucket_counts) if in_buckets else (),
        sum=getattr(point, "sum", None),
        count=getattr(point, "count", None),
        exemplars=tuple(
            Exemplar(
                _number(e), e.time_unix_nano, e.trace_id.hex(), e.span_id.hex(), _attributes(e.filtered_attributes)
            )
            for e in point.exemplars
        ),
        scope=scope,
        resource=resource,
    )


def log_records(request: ExportLogsServiceRequest) -> Iterator[LogRecord]:
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield LogRecord(
                    severity_text=record.severity_text,
                    severity_number=record.severity_number,
                    body=_value(record.body),
                    attributes=_attributes(record.attributes),
                    event_name=record.event_name,
                    trace_id=record.trace_id.hex(),
                    span_id=record.span_id.hex(),
                    time=record.time_unix_nano,
                    observed_time=record.observed_time_unix_nano,
                    scope=_scope(scope.scope, scope.schema_url),
                    resource=_attributes(resource.resource.attributes),
                )


def _scope(scope: InstrumentationScope, schema_url: str) -> Scope:
    return Scope(scope.name, scope.version, schema_url)


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _number(point: Any) -> float:
    """Return an int where an int was sent: the types of attributes and values are part of the promise."""
    number: float = getattr(point, point.WhichOneof("value"))
    return number
