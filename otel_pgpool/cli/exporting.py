"""The exporters of the demo's telemetry: always into the recording, and to an OTLP endpoint if there is one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.json.file import FileMetricExporter, FileSpanExporter
from opentelemetry.exporter.otlp.json.file._log_exporter import FileLogExporter
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter, ObservableUpDownCounter, UpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality

from otel_pgpool import otlp
from otel_pgpool.cli.errors import CommandError

if TYPE_CHECKING:
    from otel_pgpool.cli.endpoint import Endpoint
    from otel_pgpool.cli.recording import Recording

SERVICE = "otel-pgpool-demo"
# So that the files contain every span, and dashboards are updated while the demo runs. The user's own values remain.
SDK_DEFAULTS = {
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    "OTEL_BSP_MAX_QUEUE_SIZE": "20000",
    "OTEL_BSP_SCHEDULE_DELAY": "1000",
}
# The report reads the totals from the last values, so it needs cumulative ones, whatever the user's backend prefers.
CUMULATIVE: dict[type, AggregationTemporality] = dict.fromkeys(
    (Counter, Histogram, ObservableCounter, ObservableUpDownCounter, UpDownCounter),
    AggregationTemporality.CUMULATIVE,
)


def refuse_disabled_sdk() -> None:
    """Check that telemetry is not switched off.

    Raises:
        CommandError: the SDK is switched off.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise CommandError("OTEL_SDK_DISABLED is set: the demo shows telemetry, and there would be none; unset it")


def export(recording: Recording, endpoint: Endpoint | None) -> otlp.Providers:
    """Set the providers of the process.

    Raises:
        CommandError: a variable that the SDK reads is invalid, or providers are set already.
    """
    for variable, value in SDK_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    if endpoint is not None:
        endpoint.export_to(os.environ)
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    try:
        return otlp.configure(
            None if named else SERVICE,
            span_exporters=[FileSpanExporter(recording.traces)],
            metric_exporters=[FileMetricExporter(recording.metrics, preferred_temporality=CUMULATIVE)],
            log_exporters=[FileLogExporter(recording.logs)],
            otlp=endpoint is not None,
        )
    except (RuntimeError, ValueError, ImportError) as error:
        raise CommandError(str(error)) from None
