"""A wrapper of the OTLP exporters, which counts the items recorded and those that the endpoint accepted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime import fork

if TYPE_CHECKING:
    from collections.abc import Callable

_should_report: ContextVar[Callable[[], bool]] = ContextVar("otel_pgpool_should_report", default=lambda: True)
"""Decides during an export whether a log record of the exporter passes."""


class CountingExporter:
    """A wrapper of an OTLP exporter that counts the items recorded for it and those that the endpoint accepted.

    Args:
        create: creates the exporter; called again in a forked child.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self._exporter = create()
        self._reset_counts()
        _rate_limit(type(self._exporter))
        fork.register(self._after_fork)

    def _reset_counts(self) -> None:
        self._lock = threading.RLock()  # reentrant, because a finalizer may end a span while the lock is held
        self._recorded = 0
        self._delivered = 0
        self.failures = 0
        self.is_loss_reported = False

    def _after_fork(self) -> None:
        # The exporter's connections belong to the parent. The child must neither use nor close them.
        self._parents_exporter, self._exporter = self._exporter, None
        self._reset_counts()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)  # a metric reader asks its exporter for temporality and aggregation

    @property
    def undelivered(self) -> int:
        """Number of recorded items that the endpoint has not accepted."""
        return self._recorded - self._delivered

    def record(self, items: int = 1) -> None:
        """Count items that are recorded for the endpoint."""
        with self._lock:
            self._recorded += items

    def export(self, batch: Any, **kwargs: Any) -> Any:
        """Export a batch, and count its items if the endpoint accepts them.

        Points of metrics are counted as recorded here, because their reader creates them just before the export.
        """
        if self._exporter is None:
            self._exporter = self._create()
        size = len(batch) if isinstance(batch, Sequence) else _count_points(batch)
        if not isinstance(batch, Sequence):
            self.record(size)
        delivered = False
        token = _should_report.set(self._report_loss)
        try:
            result = self._exporter.export(batch, **kwargs)
            delivered = result.name == "SUCCESS"
        finally:
            _should_report.reset(token)
            with self._lock:
                self._delivered += size * delivered
                self.failures += not delivered
                self.is_loss_reported &= not delivered
        return result

    def force_flush(self, timeout_millis: float = 0) -> bool:  # noqa: ARG002 - the SDK's signature
        """Return True: the exporter keeps no items."""
        return True

    def shutdown(self, **kwargs: Any) -> None:
        """Shut the exporter down, unless it belongs to the parent of a fork."""
        if self._exporter is not None:
            self._exporter.shutdown(**kwargs)

    def _report_loss(self) -> bool:
        """Return True once for each outage of the endpoint."""
        reported, self.is_loss_reported = self.is_loss_reported, True
        return not reported


def _count_points(batch: Any) -> int:
    scopes = [scope for resource in batch.resource_metrics for scope in resource.scope_metrics]
    return sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)


def _rate_limit(exporter: type) -> None:
    """Limit the records of an OTLP exporter's loggers, which would otherwise log each retry of each batch."""
    for kind in exporter.__mro__:
        if kind.__module__.startswith("opentelemetry.exporter.otlp."):
            logging.getLogger(kind.__module__).addFilter(_passes)


def _passes(_record: logging.LogRecord) -> bool:
    return _should_report.get()()
