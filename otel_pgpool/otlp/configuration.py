"""The function ``configure()``, and the validation of its arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry._logs import get_logger_provider, set_logger_provider
from opentelemetry.metrics import get_meter_provider, set_meter_provider
from opentelemetry.sdk.resources import Resource

from otel_pgpool.environment import CONFIG_FILE
from otel_pgpool.otlp.counting_exporter import CountingExporter
from otel_pgpool.otlp.environment import other_exporters, otlp_exporters
from otel_pgpool.otlp.providers import Providers
from otel_pgpool.runtime.text import printable
from otel_pgpool.validation import invalid_option

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

_log = logging.getLogger("otel_pgpool.otlp")


def configure(
    service_name: str | None = None,
    *,
    span_exporters: Iterable[SpanExporter] = (),
    metric_exporters: Iterable[MetricExporter] = (),
    log_exporters: Iterable[LogRecordExporter] = (),
    otlp: bool = True,
) -> Providers:
    """Set the global tracer, meter and logger providers, which export as the ``OTEL_*`` variables say.

    This is for applications that have no provider yet. The SDK and its exporters read most of the variables of
    OpenTelemetry's specification themselves: endpoints, headers, timeouts, compression, intervals, queues, sampler,
    limits, resource. This function reads those that the SDK leaves to the code that builds the providers:
    ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` and ``OTEL_LOGS_EXPORTER`` as ``opentelemetry-instrument`` does
    (``otlp``, the default, ``console``, ``prometheus`` and others that are installed, separated by commas, or
    ``none``); ``OTEL_EXPORTER_OTLP_PROTOCOL`` and its forms for one signal (``grpc``, the default, or
    ``http/protobuf``); and ``OTEL_SDK_DISABLED``. A value that is not supported does not raise, nor does an exporter
    that fails, such as Prometheus's if its port is taken: a warning contains the variable, its value, and what happens
    instead.

    ``OTEL_CONFIG_FILE``, a file of the declarative configuration, is not read; a warning says so if the variable is
    set. Only ``opentelemetry-instrument`` reads it.

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
        span_exporters: span exporters to use in addition; they are shut down with the providers.
        metric_exporters: metric exporters to use in addition; they are shut down with the providers.
        log_exporters: log exporters to use in addition; they are shut down with the providers.
        otlp: False to use only these exporters, whatever the variables say.

    Returns:
        The providers, to ``flush()`` and to ``shutdown()``, or to use as a context manager. They are shut down at the
        interpreter's exit if the application has not done so.

    Raises:
        RuntimeError: a provider is set already; nothing is changed then.
        ValueError: an argument is invalid; nothing is changed then.
        ModuleNotFoundError: the exporter of the chosen protocol is not installed.
    """
    _refuse_to_replace()
    _validate(service_name, otlp)
    given = (
        _exporters("span_exporters", span_exporters),
        _exporters("metric_exporters", metric_exporters),
        _exporters("log_exporters", log_exporters),
    )
    resource = Resource.create({"service.name": service_name} if service_name else {})
    warnings: list[str] = []
    if otlp and os.environ.get(CONFIG_FILE):
        warnings.append(
            f"{CONFIG_FILE}={printable(os.environ[CONFIG_FILE])}: configure() does not read this file, but the other "
            "OTEL_* variables"
        )
    counting: dict[str, CountingExporter] = {}
    if otlp:
        counting = {signal: CountingExporter(create) for signal, create in otlp_exporters(warnings).items()}
        for exporters, others in zip(given, other_exporters(warnings).values(), strict=True):
            exporters.extend(others)
    providers = Providers(resource, counting, *given)
    trace.set_tracer_provider(providers.tracer_provider)
    set_meter_provider(providers.meter_provider)
    set_logger_provider(providers.logger_provider)
    for warning in dict.fromkeys(warnings):  # once each: a variable may concern all three signals
        _log.warning(warning)
    return providers


def _refuse_to_replace() -> None:
    providers = {"tracer": trace.get_tracer_provider(), "meter": get_meter_provider(), "logger": get_logger_provider()}
    taken = [signal for signal, provider in providers.items() if not _is_placeholder(provider)]
    if taken:
        raise RuntimeError(
            f"OpenTelemetry's {' and '.join(taken)} provider is set already, and a process can set it only once. "
            "Either do not call configure(), because otel_pgpool uses the providers that are set, or remove the code "
            "that set them"
        )


def _is_placeholder(provider: object) -> bool:
    """Return whether a provider is the one that the API returns until another is set.

    The classes of these providers are not public; the API's other classes, which a program may set, are NoOps.
    """
    kind = type(provider)
    is_of_the_api = kind.__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics", "opentelemetry._logs"))
    return is_of_the_api and not kind.__name__.startswith("NoOp")


def _validate(service_name: object, otlp: object) -> None:
    if service_name is not None and not (isinstance(service_name, str) and service_name.strip()):
        raise invalid_option("service_name", service_name, "a non-empty string or None")
    if not isinstance(otlp, bool):
        raise invalid_option("otlp", otlp, "True or False")


def _exporters(option: str, given: object) -> list[Any]:
    exporters = list(given) if isinstance(given, Iterable) else [None]
    if not all(callable(getattr(exporter, "export", None)) for exporter in exporters):
        raise invalid_option(option, given, "a list of exporters, each with a method export()")
    return exporters
