"""OTLP as OpenMetrics text, under the names and labels that Prometheus's OTLP receiver gives by default.

A Prometheus without that receiver is given its history in this form. That both ways lead to the same series is tested
where there is a Prometheus that has it.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

UNITS = {"s": "_seconds"}
RESOURCE = {"service.name": "job", "service.instance.id": "instance"}


def text(requests: Iterable[ExportMetricsServiceRequest]) -> str:
    """Every sample with its time, for ``promtool tsdb create-blocks-from openmetrics``."""
    return "\n".join([*(line for request in requests for line in _lines(request)), "# EOF\n"])


def _lines(request: ExportMetricsServiceRequest) -> Iterator[str]:
    for resource in request.resource_metrics:
        given = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
        labels = {RESOURCE[name]: value for name, value in given.items() if name in RESOURCE}
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from _samples(metric, labels)


def _samples(metric: Any, resource: dict[str, str]) -> Iterator[str]:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    name = _escape(metric.name) + UNITS.get(metric.unit, "")
    if kind == "gauge" and metric.unit == "1":
        name += "_ratio"
    if kind == "sum" and data.is_monotonic:
        name += "_total"
    for point in data.data_points:
        labels = {**resource, **{_escape(each.key): each.value.string_value for each in point.attributes}}
        at = point.time_unix_nano / 1e9
        if kind != "histogram":
            yield _sample(name, labels, getattr(point, point.WhichOneof("value")), at)
            continue
        bounds = [*(f"{bound:g}" for bound in point.explicit_bounds), "+Inf"]
        for bound, records in zip(bounds, accumulate(point.bucket_counts), strict=True):
            yield _sample(f"{name}_bucket", {**labels, "le": bound}, records, at)
        yield _sample(f"{name}_count", labels, point.count, at)
        yield _sample(f"{name}_sum", labels, point.sum, at)


def _sample(name: str, labels: dict[str, str], value: float, at: float) -> str:
    shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value} {at:.3f}"


def _escape(name: str) -> str:
    return re.sub(r"\W", "_", name)
