"""OpenTelemetry for applications that have not set it up: ``configure()`` sets providers that export over OTLP.

This module needs the extra ``otlp``: the OpenTelemetry SDK and its OTLP exporters. ``import otel_pgpool`` does not
import it.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry._logs import get_logger_provider, set_logger_provider
from opentelemetry.metrics import get_meter_provider, set_meter_provider

from otel_pgpool.config import refuse, seconds

try:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from otel_pgpool.otlp.delivery import (
        Deadline,
        Delivery,
        LogHandler,
        LogProcessor,
        MetricDelivery,
        MetricReader,
        SpanProcessor,
        hold_down_the_sdk,
    )
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("opentelemetry."):
        raise
    message = f"otel_pgpool.otlp needs {error.name}: install the extra 'otlp' (pip install 'otel-pgpool[otlp]')"
    raise ModuleNotFoundError(message, name=error.name) from error

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter
    from typing_extensions import Self

__all__ = ["Providers", "Undelivered", "configure"]

_log = logging.getLogger(__name__)

_PACKAGES = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}
_EXPORTERS = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}

_OTLP = {"otlp": None, "otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
"""Values of ``OTEL_<signal>_EXPORTER`` that mean OTLP, with the protocol if the value implies one."""

_LONGEST_FLUSH = 86_400.0  # s; the SDK and ``Thread.join`` do not accept infinity


def configure(
    service_name: str | None = None,
    *,
    span_exporters: Iterable[SpanExporter] = (),
    metric_exporters: Iterable[MetricExporter] = (),
    log_exporters: Iterable[LogRecordExporter] = (),
    otlp: bool = True,
) -> Providers:
    """Set the global tracer, meter and logger providers, which export over OTLP as the ``OTEL_*`` variables say.

    This is for applications that have no provider yet. The SDK and its exporters read most of the variables of
    OpenTelemetry's specification themselves: endpoints, headers, timeouts, compression, intervals, queues, sampler,
    limits, resource. This function reads those that the SDK leaves to the code that builds the providers:
    ``OTEL_EXPORTER_OTLP_PROTOCOL`` and its forms for one signal (``grpc``, the default, or ``http/protobuf``);
    ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` and ``OTEL_LOGS_EXPORTER`` (``otlp``, the default, or ``none``);
    and ``OTEL_SDK_DISABLED``. Another value, such as one meant for ``opentelemetry-instrument``, does not raise: a
    warning contains the variable, its value, and what happens instead.

    Records of the logger ``otel_pgpool`` are exported too, with the trace that was active when they were logged, and
    still reach the application's own handlers. If that logger has no level, its level is set to INFO.

    A server that forks its workers has to call this function in each worker, after the fork (gunicorn: ``post_fork``).
    A process forked later continues to export, with connections and counts of its own, but over ``http/protobuf`` only,
    and without metrics if the fork happened during an export of metrics. A child that ends by ``os._exit``, as those of
    multiprocessing do, has to call ``flush()`` itself.

    While an endpoint does not answer, the exporters' loggers report it once for each signal, not at each retry;
    ``Providers.undelivered`` is the number of items not delivered.

    Args:
        service_name: the resource's ``service.name``, which overrides ``OTEL_SERVICE_NAME``; None to use the variables.
        span_exporters: span exporters to use alongside OTLP; they are shut down with the providers.
        metric_exporters: metric exporters to use alongside OTLP; they are shut down with the providers.
        log_exporters: log exporters to use alongside OTLP; they are shut down with the providers.
        otlp: False to send nothing over OTLP, whatever the variables say.

    Returns:
        The providers, to ``flush()`` and to ``shutdown()``, or to use as a context manager. They are shut down at the
        interpreter's exit if the application has not done so.

    Raises:
        RuntimeError: a provider is set already; nothing is changed then.
        ValueError: an argument is invalid; nothing is changed then.
        ModuleNotFoundError: the exporter of the chosen protocol is not installed.
    """
    _refuse_to_replace()
    resource = Resource.create(_service(service_name))
    given = (
        _exporters("span_exporters", span_exporters),
        _exporters("metric_exporters", metric_exporters),
        _exporters("log_exporters", log_exporters),
    )
    wanted = _yes_or_no("otlp", otlp) and _variable("OTEL_SDK_DISABLED").lower() != "true"
    unserved: dict[str, None] = {}  # used as an ordered set
    exporters = {
        signal: exporter for signal in _EXPORTERS if wanted and (exporter := _exporter_class(signal, unserved))
    }
    deliveries = {
        signal: (MetricDelivery if signal == "metrics" else Delivery)(exporter)
        for signal, exporter in exporters.items()
    }
    providers = Providers(resource, deliveries, *given)
    trace.set_tracer_provider(providers.tracer_provider)
    set_meter_provider(providers.meter_provider)
    set_logger_provider(providers.logger_provider)
    for each in unserved:
        _log.warning(each)
    return providers


class Undelivered(NamedTuple):
    """Numbers of items recorded for OTLP that did not arrive: queued, dropped from a full queue, refused, given up."""

    spans: int
    metric_points: int
    log_records: int


class Providers:
    """The three providers that ``configure()`` has set, to flush and to shut down together."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    logger_provider: LoggerProvider

    def __init__(
        self,
        resource: Resource,
        deliveries: dict[str, Delivery],
        span_exporters: Iterable[SpanExporter],
        metric_exporters: Iterable[MetricExporter],
        log_exporters: Iterable[LogRecordExporter],
    ) -> None:
        self._deliveries = deliveries
        self._deadline = Deadline()
        self._shut = threading.Lock()
        self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        # The given exporters are always added first, so that an OTLP endpoint that hangs does not delay their shutdown.
        readers = [PeriodicExportingMetricReader(exporter) for exporter in metric_exporters]
        if delivery := deliveries.get("metrics"):
            readers.append(MetricReader(delivery, self._deadline))
        self.meter_provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        for span_exporter in span_exporters:
            self.tracer_provider.add_span_processor(BatchSpanProcessor(span_exporter))
        if delivery := deliveries.get("traces"):
            self.tracer_provider.add_span_processor(SpanProcessor(delivery, self._deadline))
        for log_exporter in log_exporters:
            self.logger_provider.add_log_record_processor(BatchLogRecordProcessor(log_exporter))
        if delivery := deliveries.get("logs"):
            self.logger_provider.add_log_record_processor(LogProcessor(delivery, self._deadline))
        self._handler = LogHandler(self.logger_provider)
        self._handler.attach()
        hold_down_the_sdk()
        atexit.register(self.shutdown)

    @property
    def undelivered(self) -> Undelivered:
        """Items that OTLP has not delivered so far; final after ``shutdown()``. A forked child counts its own."""
        spans, points, records = (self._deliveries.get(signal) for signal in ("traces", "metrics", "logs"))
        return Undelivered(*(each.undelivered if each else 0 for each in (spans, points, records)))

    def flush(self, timeout: float = 10.0) -> bool:
        """Export what was recorded so far; return True if the endpoints accepted all of it in time.

        An export that is still in progress when the time is over is not cancelled. Not for ``atexit`` callbacks, in
        which Python 3.12 and later start no thread: use ``shutdown()`` there, which flushes too.

        Args:
            timeout: longest wait in seconds.

        Raises:
            ValueError: ``timeout`` is not a number of seconds.
        """
        timeout = min(seconds("timeout", timeout), _LONGEST_FLUSH)
        failures = self._failures()
        flushed: list[bool] = []
        deadline = time.monotonic() + timeout
        threads = [
            threading.Thread(target=lambda p=provider: flushed.append(_flush(p, timeout)), daemon=True)
            for provider in self._providers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
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
        timeout = seconds("timeout", timeout)
        if not self._shut.acquire(blocking=False):
            return
        atexit.unregister(self.shutdown)
        self._handler.detach()
        start = time.monotonic()
        for share, provider in enumerate(self._providers, 1):
            self._deadline.at = start + timeout * share / len(self._providers)
            try:
                provider.shutdown()
            except Exception:  # noqa: BLE001 - the other providers have to shut down too
                _log.exception("%s did not shut down cleanly", type(provider).__name__)
        if any(each.is_silent() for each in self._deliveries.values()):
            _log.warning("not delivered: %d spans, %d metric points, %d log records", *self.undelivered)

    @property
    def _providers(self) -> tuple[TracerProvider | MeterProvider | LoggerProvider, ...]:
        return self.meter_provider, self.tracer_provider, self.logger_provider

    def _failures(self) -> int:
        return sum(delivery.failures for delivery in self._deliveries.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def _flush(provider: TracerProvider | MeterProvider | LoggerProvider, timeout: float) -> bool:
    try:
        return provider.force_flush(int(timeout * 1000))
    except Exception:  # noqa: BLE001 - the meter provider raises a bare Exception if a reader was too slow
        return False


def _refuse_to_replace() -> None:
    providers = {"tracer": trace.get_tracer_provider(), "meter": get_meter_provider(), "logger": get_logger_provider()}
    # Until a provider is set, the API returns a proxy. Only the class of the tracer provider's proxy is public.
    taken = [signal for signal, provider in providers.items() if "Proxy" not in type(provider).__name__]
    if taken:
        raise RuntimeError(
            f"OpenTelemetry's {' and '.join(taken)} provider is set already, which a process can do only once. Either "
            "leave configure() out, since otel_pgpool uses the providers that are set, or leave out what set them"
        )


def _service(name: object) -> dict[str, str]:
    if name is None:
        return {}
    if not isinstance(name, str) or not name.strip():
        raise refuse("service_name", name, "a non-empty string or None")
    return {"service.name": name}


def _exporters(option: str, given: object) -> list[Any]:
    exporters = list(given) if isinstance(given, Iterable) else [None]
    if not all(callable(getattr(exporter, "export", None)) for exporter in exporters):
        raise refuse(option, given, "a list of exporters, each with a method export()")
    return exporters


def _yes_or_no(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise refuse(option, value, "True or False")
    return value


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _exporter_class(signal: str, unserved: dict[str, None]) -> Callable[[], Any] | None:
    """Return the OTLP exporter of ``signal`` in the protocol that the variables choose; None if they choose none.

    Unknown values are added to ``unserved``, with what happens instead.
    """
    protocol = _choice(signal, unserved)
    if protocol is None:
        return None
    module, name = _EXPORTERS[signal]
    try:
        exporter: Callable[[], Any] = getattr(importlib.import_module(f"{_PACKAGES[protocol]}.{module}"), name)
    except ModuleNotFoundError as error:
        message = f"OTLP over {protocol} needs {error.name}: install the extra 'otlp' (pip install 'otel-pgpool[otlp]')"
        raise ModuleNotFoundError(message, name=error.name) from error
    return exporter


def _choice(signal: str, unserved: dict[str, None]) -> str | None:
    """Return the protocol in which ``signal`` is sent over OTLP; None if other exporters or none are named."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    names = [name.strip().lower() for name in (_variable(variable) or "otlp").split(",")]
    ours = [name for name in names if name in _OTLP]
    if any(name not in _OTLP and name not in ("none", "") for name in names):
        instead = f"{signal} go over OTLP alone" if ours else f"no {signal} are exported by it"
        unserved[
            f"{variable}={_variable(variable)}: configure() knows otlp and none, and the exporters that it is given; "
            f"{instead}"
        ] = None
    return (_OTLP[ours[0]] or _protocol(signal, unserved)) if ours else None


def _protocol(signal: str, unserved: dict[str, None]) -> str:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := _variable(variable).lower():
            if protocol in _PACKAGES:
                return protocol
            instead = "http/protobuf" if protocol.startswith("http") else "grpc"
            unserved[f"{variable}={protocol}: configure() knows {' and '.join(_PACKAGES)}; {instead} is used"] = None
            return instead
    return "grpc"
