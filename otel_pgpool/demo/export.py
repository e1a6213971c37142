"""The export of the demo's telemetry: to a recording's files, and to an OTLP endpoint if there is one."""

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
    from otel_pgpool.cli.recording import Recording
    from otel_pgpool.demo.endpoint import Endpoint

SERVICE = "otel-pgpool-demo"
# With these values the files contain every span, and dashboards are updated while the demo runs. The user's own values
# take precedence, except for a sampler, because the report is computed from the spans of all checkouts.
SDK_DEFAULTS = {
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    "OTEL_BSP_MAX_QUEUE_SIZE": "20000",
    "OTEL_BSP_SCHEDULE_DELAY": "1000",
}
EXPORTER_VARIABLES = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")
# The report reads the totals from the last values, so it needs cumulative ones, whatever the user's backend prefers.
CUMULATIVE: dict[type, AggregationTemporality] = dict.fromkeys(
    (Counter, Histogram, ObservableCounter, ObservableUpDownCounter, UpDownCounter),
    AggregationTemporality.CUMULATIVE,
)


def set_providers(recording: Recording, endpoint: Endpoint | None) -> otlp.Providers:
    """Set the providers of the process, with the exporters of the recording and of the endpoint.

    The recording replaces an earlier one in its folder.

    Raises:
        CommandError: the folder or a file cannot be written, a variable that the SDK reads is invalid, or providers are
            set already.
    """
    for variable, value in SDK_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    os.environ["OTEL_TRACES_SAMPLER"] = "always_on"
    if endpoint is not None:
        endpoint.export_to(os.environ)
        for variable in EXPORTER_VARIABLES:  # another exporter, such as that of the console, would write into the view
            names = os.environ.get(variable, "").lower().split(",")
            os.environ[variable] = ",".join(name for name in names if name.strip().startswith(("otlp_proto", "none")))
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    try:
        recording.folder.mkdir(parents=True, exist_ok=True)
        providers = otlp.configure(
            None if named else SERVICE,
            span_exporters=[FileSpanExporter(recording.traces)],
            metric_exporters=[FileMetricExporter(recording.metrics, preferred_temporality=CUMULATIVE)],
            log_exporters=[FileLogExporter(recording.logs)],
            otlp=endpoint is not None,
        )
    except OSError as error:
        where = error.filename or recording.folder
        raise CommandError(f"--out: {where} cannot be written: {error.strerror}") from None
    except (RuntimeError, ValueError, ImportError) as error:
        raise CommandError(str(error)) from None
    for path in recording.files:
        os.truncate(path, 0)
    return providers
