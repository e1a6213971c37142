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
    from pathlib import Path

    from otel_pgpool.cli.recording import Recording
    from otel_pgpool.demo.endpoint import Endpoint

SERVICE = "otel-pgpool-demo"
# With these values the files contain every span, and dashboards are updated while the demo runs. The user's own values
# take precedence.
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


class RecordingFiles:
    """The files of a recording: the demo creates them, empties them and keeps them."""

    def __init__(self, recording: Recording) -> None:
        self.kept = False
        """Whether the files are kept at the end, because the run has begun to write to them."""
        self._recording = recording
        self._created: list[Path] = []

    def prepare(self) -> None:
        """Create the folder and the files if necessary, and check that they can be written.

        Raises:
            OSError: the folder or a file cannot be written.
        """
        folder = self._recording.folder
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._created = missing
        for path in self._recording.files:
            new = not path.exists()
            path.open("ab").close()
            if new:
                self._created.insert(0, path)

    def undo_prepare(self) -> None:
        """Delete what `prepare` created, unless the files are kept."""
        for path in self._created:
            try:
                path.rmdir() if path.is_dir() else path.unlink()
            except OSError:
                return  # another process has put a file into the folder

    def begin(self) -> None:
        """Empty the files, which replaces the recording of an earlier run, and keep them from now on."""
        self._created = []
        self.kept = True
        for path in self._recording.files:
            path.write_bytes(b"")


def check_sdk_enabled() -> None:
    """Check that telemetry is not switched off.

    Raises:
        CommandError: the SDK is switched off.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise CommandError("OTEL_SDK_DISABLED is set: the demo shows telemetry, and there would be none; unset it")


def set_providers(recording: Recording, endpoint: Endpoint | None) -> otlp.Providers:
    """Set the providers of the process, with the exporters of the recording and of the endpoint.

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
