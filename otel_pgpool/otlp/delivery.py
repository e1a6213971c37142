"""The OTLP exporters of ``configure()``, which count, and its processors, which shut down in time.

Only ``otel_pgpool.otlp`` imports this module, because it needs the extra ``otlp``.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_pgpool.runtime import fork
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import LAMENT_INTERVAL
from otel_pgpool.runtime.text import LONGEST_TEXT, cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk._logs import LoggerProvider, ReadWriteLogRecord
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan

_pool_log = logging.getLogger("otel_pgpool")


class Delivery:
    """A wrapper of an OTLP exporter that counts the items recorded for it and those that the endpoint accepted."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._exporter = make()
        self._begin()
        for kind in type(self._exporter).__mro__:
            if kind.__module__.startswith("opentelemetry.exporter.otlp."):
                logging.getLogger(kind.__module__).addFilter(_once_an_outage)
        fork.register(self._after_fork)

    def _begin(self) -> None:
        self._lock = threading.RLock()  # reentrant, because a finalizer may end a span while the lock is held
        self._recorded = 0
        self._delivered = 0
        self._refused = 0
        self.failures = 0
        self._complained = False

    def _after_fork(self) -> None:
        # The exporter's connections belong to the parent. The child must neither use nor close them.
        self._of_the_parent, self._exporter = self._exporter, None
        self._begin()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)  # a metric reader asks its exporter for temporality and aggregation

    @property
    def undelivered(self) -> int:
        return self._recorded - self._delivered

    def is_silent(self) -> bool:
        """Return True if items are missing for which no export has failed and nothing was logged."""
        return self._recorded > self._delivered + self._refused and self.may_complain()

    def record(self, items: int = 1) -> None:
        with self._lock:
            self._recorded += items

    def may_complain(self) -> bool:
        """Return True once for each outage of the endpoint."""
        complained, self._complained = self._complained, True
        return not complained

    def export(self, batch: Any, **kwargs: Any) -> Any:
        if self._exporter is None:
            self._exporter = self._make()
        token = _exporting.set(self)
        delivered = False
        try:
            result = self._exporter.export(batch, **kwargs)
            delivered = result.name == "SUCCESS"
        finally:
            _exporting.reset(token)
            with self._lock:
                self._delivered += self._size(batch) if delivered else 0
                self._refused += 0 if delivered else self._size(batch)
                self.failures += not delivered
                self._complained = self._complained and not delivered
        return result

    def force_flush(self, timeout_millis: float = 0) -> bool:  # noqa: ARG002 - the SDK's signature
        return True

    def shutdown(self, **kwargs: Any) -> None:
        if self._exporter is not None:
            self._exporter.shutdown(**kwargs)

    def _size(self, batch: Any) -> int:
        return len(batch)


class MetricDelivery(Delivery):
    """A wrapper of a metric exporter, which counts points: the reader creates them just before the export."""

    def export(self, batch: MetricsData, **kwargs: Any) -> Any:
        self.record(self._size(batch))
        return super().export(batch, **kwargs)

    def _size(self, batch: MetricsData) -> int:
        scopes = [scope for resource in batch.resource_metrics for scope in resource.scope_metrics]
        return sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)


_exporting: ContextVar[Delivery | None] = ContextVar("otel_pgpool_exporting", default=None)


def _once_an_outage(_record: logging.LogRecord) -> bool:
    """Filter the exporters' loggers, which would otherwise log each retry of each batch."""
    delivery = _exporting.get()
    return delivery is None or delivery.may_complain()


MOST_KEPT = 1000
"""Maximum number of different records that are remembered within a minute."""


class OnceAWhile(logging.Filter):
    """A filter that passes each record once a minute, because the SDK repeats it at each export and each collection."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[tuple[Any, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said, now = (cut(str(record.msg), LONGEST_TEXT), cut(str(record.args), LONGEST_TEXT)), monotonic()
        if now < self._next.get(said, 0.0):
            return False
        if len(self._next) >= MOST_KEPT:  # records may contain an endpoint's answers, all different
            with suppress(StopIteration, KeyError, RuntimeError):  # another thread may be here too
                del self._next[next(iter(self._next))]
        self._next[said] = now + LAMENT_INTERVAL
        return True


_once_a_while = OnceAWhile()


def hold_down_the_sdk() -> None:
    for name in ("_shared_internal", "metrics._internal.instrument", "metrics._internal.export"):
        logging.getLogger(f"opentelemetry.sdk.{name}").addFilter(_once_a_while)


class Deadline:
    """The time at which the OTLP processors give up; the SDK's own limit until ``Providers.shutdown()`` sets one."""

    at = math.inf

    def millis(self) -> float:
        return min(max(0.0, self.at - monotonic()), 30.0) * 1000


class SpanProcessor(BatchSpanProcessor):
    def __init__(self, delivery: Any, deadline: Deadline) -> None:
        super().__init__(delivery)
        self._delivery = delivery
        self._deadline = deadline

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and span.context.trace_flags.sampled:
            self._delivery.record()
        super().on_end(span)

    def shutdown(self) -> None:
        self._batch_processor.shutdown(
            timeout_millis=int(self._deadline.millis())
        )  # the public method has no such argument


class LogProcessor(BatchLogRecordProcessor):
    def __init__(self, delivery: Any, deadline: Deadline) -> None:
        super().__init__(delivery)
        self._delivery = delivery
        self._deadline = deadline

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self._delivery.record()
        super().on_emit(log_record)

    def shutdown(self) -> None:
        self._batch_processor.shutdown(timeout_millis=int(self._deadline.millis()))


class MetricReader(PeriodicExportingMetricReader):
    def __init__(self, delivery: Any, deadline: Deadline) -> None:
        super().__init__(delivery)
        self._deadline = deadline

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        super().shutdown(min(timeout_millis, self._deadline.millis()), **kwargs)


class LogHandler(logging.Handler):
    """A handler that passes standard log records to OpenTelemetry, in the context in which they were logged.

    The SDK's own handler is deprecated, and its successor is part of the auto-instrumentation, which pins exact
    versions.
    """

    _SEVERITIES = (
        (logging.CRITICAL, SeverityNumber.FATAL, "FATAL"),
        (logging.ERROR, SeverityNumber.ERROR, "ERROR"),
        (logging.WARNING, SeverityNumber.WARN, "WARN"),
        (logging.INFO, SeverityNumber.INFO, "INFO"),
        (logging.NOTSET, SeverityNumber.DEBUG, "DEBUG"),
    )
    _OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider
        self._set_level = False

    def attach(self) -> None:
        _pool_log.addHandler(self)
        if _pool_log.level == logging.NOTSET:
            _pool_log.setLevel(logging.INFO)
            self._set_level = True

    def detach(self) -> None:
        _pool_log.removeHandler(self)
        if self._set_level and _pool_log.level == logging.INFO:
            _pool_log.setLevel(logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            number, text = next((number, text) for level, number, text in self._SEVERITIES if record.levelno >= level)
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                severity_number=number,
                severity_text=text,
                body=record.getMessage(),
                attributes={name: value for name, value in vars(record).items() if name not in self._OWN_FIELDS},
                exception=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:  # noqa: BLE001 - logging must not raise
            self.handleError(record)
        # Because of this handler, logging's handler of last resort is not used, so stderr would stay silent.
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and self._is_alone(logging.getLogger(record.name)):
            last.handle(record)

    def _is_alone(self, logger: logging.Logger | None) -> bool:
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return False
            logger = logger.parent if logger.propagate else None
        return True
