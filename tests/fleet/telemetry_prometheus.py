"""The memory of a Prometheus that has the metrics of many processes for an hour."""

from __future__ import annotations

import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource

from otel_pgpool import ConnectionPool, Telemetry
from tests.support.prometheus import Prometheus
from tests.support.servers import ClonedServer
from tests.support.telemetry import all_connects_told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

EXPORT_SECONDS, EXPORTS = 60, 60
OURS = '{__name__=~"db_client_.+|otel_pgpool_.+|target_info"}'
"""The series of the processes, without those of the rules."""


def exported() -> dict[str, ExportMetricsServiceRequest]:
    """Return the export of a pool at work, by the kind of its histograms."""
    exponential = InMemoryMetricReader(preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()})
    readers = {"classic": InMemoryMetricReader(), "native": exponential}
    resource = Resource.create({"service.name": "shop", "service.instance.id": ""})
    provider = MeterProvider(list(readers.values()), resource, shutdown_on_exit=False)
    with (
        ClonedServer() as server,
        ConnectionPool(0, 1, server.dsn, long_hold=None, observer=Telemetry(None, provider)) as pool,
    ):
        for _ in range(100):
            pool.putconn(pool.getconn())
        all_connects_told(pool)
        found = {kind: reader.get_metrics_data() for kind, reader in readers.items()}
    return {kind: encode_metrics(data) for kind, data in found.items() if data}


def exports(one: ExportMetricsServiceRequest, processes: int) -> Iterator[ExportMetricsServiceRequest]:
    """Yield an hour's exports of so many processes, each with an instance of its own."""
    instances = [str(uuid.uuid4()) for _ in range(processes)]
    began = time.time_ns() - EXPORTS * EXPORT_SECONDS * 10**9
    (resource,) = one.resource_metrics
    points = [
        point
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data")).data_points
    ]
    (instance,) = (each for each in resource.resource.attributes if each.key == "service.instance.id")
    for number in range(1, EXPORTS + 1):
        for point in points:
            point.time_unix_nano = began + number * EXPORT_SECONDS * 10**9
            point.start_time_unix_nano = began
        for name in instances:
            instance.value.string_value = name
            yield one


def memory(one: ExportMetricsServiceRequest, processes: int) -> tuple[int, float]:
    """Return how many series such a Prometheus has, and its resident memory in MiB after the hour."""
    with tempfile.TemporaryDirectory() as folder, Prometheus(Path(folder)) as prometheus:
        prometheus.receive(exports(one, processes))
        (counted,) = prometheus.ask("query", query=f"count({OURS})")["result"]
        lines = prometheus.get("/metrics").splitlines()
        (rss,) = (line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes "))
        return int(counted["value"][1]), float(rss) / 2**20
