"""The providers that ``configure()`` sets, to flush and to shut down together."""

from __future__ import annotations

import atexit
import logging
import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_pgpool.otlp.logs import LogHandler, rate_limit_sdk_loggers
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.telemetry.sdk_internals import shutdown_batch_processor
from otel_pgpool.validation import validate_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk._logs import ReadWriteLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from typing_extensions import Self

    from otel_pgpool.otlp.counting_exporter import CountingExporter

_log = logging.getLogger("otel_pgpool.otlp")

SDK_LIMIT = 30.0
"""Seconds that the SDK itself gives a shutdown."""
_LONGEST_FLUSH = 86_400.0  # s; the SDK and ``Thread.join`` do not accept infinity


class _BoundedProcessor:
    """The part that both batch processors have in common: the counting exporter, and a shutdown by a deadline.

    The parameter ``exporter`` is a `CountingExporter`, which the SDK's types do not know.
    """

    def __init__(self, exporter: Any, millis_left: Callable[[], float]) -> None:
        super().__init__(exporter)  # type: ignore[call-arg]  # of the SDK's class, which comes next
        self._counting_exporter = exporter
        self._millis_left = millis_left

    def shutdown(self) -> None:
        """Export what is queued until the deadline, and stop."""
        shutdown_batch_processor(self, super().shutdown, int(self._millis_left()))  # type: ignore[misc]  # as above


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

    def __init__(self, exporter: Any, millis_left: Callable[[], float]) -> None:
        super().__init__(exporter)
        self._millis_left = millis_left

    def shutdown(self, timeout_millis: float = SDK_LIMIT * 1000, **kwargs: Any) -> None:
        """Collect and export once more until the deadline, and stop."""
        super().shutdown(min(timeout_millis, self._millis_left()), **kwargs)


class Undelivered(NamedTuple):
    """Numbers of items recorded for OTLP that did not arrive: queued, dropped from a full queue, refused, given up."""

    spans: int
    metric_points: int
    log_records: int


class Providers:
    """The three providers that ``configure()`` has set, to flush and to shut down together."""

    def __init__(
        self,
        resource: Resource,
        otlp_exporters: dict[str, CountingExporter],
        span_exporters: Iterable[SpanExporter],
        metric_exporters: Iterable[MetricExporter | MetricReader],
        log_exporters: Iterable[LogRecordExporter],
    ) -> None:
        self._otlp_exporters = otlp_exporters
        self._deadline = math.inf
        self._shutdown_once = threading.Lock()
        # The given exporters are always added first, so that an OTLP endpoint that hangs does not delay their shutdown.
        readers: list[MetricReader] = [
            each if isinstance(each, MetricReader) else PeriodicExportingMetricReader(each) for each in metric_exporters
        ]
        span_processors = [BatchSpanProcessor(exporter) for exporter in span_exporters]
        log_processors = [BatchLogRecordProcessor(exporter) for exporter in log_exporters]
        for signal, exporter in otlp_exporters.items():
            if signal == "metrics":
                readers.append(OtlpMetricReader(exporter, self._millis_left))
            elif signal == "traces":
                span_processors.append(OtlpSpanProcessor(exporter, self._millis_left))
            else:
                log_processors.append(OtlpLogProcessor(exporter, self._millis_left))
        self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.meter_provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        for span_processor in span_processors:
            self.tracer_provider.add_span_processor(span_processor)
        for log_processor in log_processors:
            self.logger_provider.add_log_record_processor(log_processor)
        self._handler = LogHandler(self.logger_provider)
        self._handler.attach()
        rate_limit_sdk_loggers()
        atexit.register(self.shutdown)

    @property
    def undelivered(self) -> Undelivered:
        """Items that OTLP has not delivered so far; final after ``shutdown()``. A forked child counts its own."""
        exporters = (self._otlp_exporters.get(signal) for signal in ("traces", "metrics", "logs"))
        return Undelivered(*(exporter.undelivered if exporter else 0 for exporter in exporters))

    def flush(self, timeout: float = 10.0) -> bool:
        """Export what was recorded so far; return True if the endpoints accepted all of it in time.

        An export that is still in progress when the time is over is not cancelled. Not for ``atexit`` callbacks, in
        which Python 3.12 and later start no thread: use ``shutdown()`` there, which flushes too.

        Args:
            timeout: longest wait in seconds.

        Raises:
            ValueError: ``timeout`` is not a number of seconds.
        """
        timeout = min(validate_seconds("timeout", timeout), _LONGEST_FLUSH)
        failures = self._failures()
        flushed: list[bool] = []
        deadline = monotonic() + timeout

        def flush(provider: TracerProvider | MeterProvider | LoggerProvider) -> None:
            with suppress(Exception):  # the meter provider raises a bare one if a reader was too slow
                flushed.append(provider.force_flush(int(timeout * 1000)))

        threads = [threading.Thread(target=flush, args=(provider,), daemon=True) for provider in self._providers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        return flushed == [True] * len(threads) and self._failures() == failures

    def shutdown(self, timeout: float = 5.0) -> None:
        """Flush, stop exporting and close the exporters; a second call does nothing.

        Items that OTLP has not delivered in time are given up and counted in ``undelivered``. The exporters given to
        ``configure()`` are flushed regardless of OTLP.

        Args:
            timeout: seconds for OTLP, shared by the three signals.

        Raises:
            ValueError: ``timeout`` is not a number of seconds.
        """
        timeout = validate_seconds("timeout", timeout)
        if not self._shutdown_once.acquire(blocking=False):
            return
        atexit.unregister(self.shutdown)
        self._handler.detach()
        start = monotonic()
        for share, provider in enumerate(self._providers, 1):
            self._deadline = start + timeout * share / len(self._providers)
            try:
                provider.shutdown()
            except Exception:  # noqa: BLE001 - the other providers have to shut down too
                _log.exception("%s did not shut down cleanly", type(provider).__name__)
        if any(exporter.undelivered and not exporter.is_loss_reported for exporter in self._otlp_exporters.values()):
            _log.warning("not delivered: %d spans, %d metric points, %d log records", *self.undelivered)

    @property
    def _providers(self) -> tuple[TracerProvider | MeterProvider | LoggerProvider, ...]:
        return self.meter_provider, self.tracer_provider, self.logger_provider

    def _millis_left(self) -> float:
        """Return the milliseconds that the OTLP processors have; the SDK's own limit until `shutdown` sets another."""
        return min(max(0.0, self._deadline - monotonic()), SDK_LIMIT) * 1000

    def _failures(self) -> int:
        return sum(exporter.failures for exporter in self._otlp_exporters.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
