"""Wrappers of the OTLP exporters, which count the items recorded and those that the endpoint accepted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from otel_pgpool.otlp.log_limits import rate_limit_exporter, reporting
from otel_pgpool.runtime import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.metrics.export import MetricsData


class CountingExporter:
    """A wrapper of an OTLP exporter that counts the items recorded for it and those that the endpoint accepted.

    Args:
        create: creates the exporter; called again in a forked child.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self._exporter = create()
        self._reset_counts()
        rate_limit_exporter(type(self._exporter))
        fork.register(self._after_fork)

    def _reset_counts(self) -> None:
        self._lock = threading.RLock()  # reentrant, because a finalizer may end a span while the lock is held
        self._recorded = 0
        self._delivered = 0
        self._refused = 0
        self.failures = 0
        self._reported = False

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

    def has_unreported_loss(self) -> bool:
        """Return whether items are undelivered without a failed export, so that no record reports them."""
        return self._recorded > self._delivered + self._refused and self.should_report()

    def record(self, items: int = 1) -> None:
        """Count items that are recorded for the endpoint."""
        with self._lock:
            self._recorded += items

    def should_report(self) -> bool:
        """Return True once for each outage of the endpoint."""
        reported, self._reported = self._reported, True
        return not reported

    def export(self, batch: Any, **kwargs: Any) -> Any:
        """Export a batch, and count its items as delivered or refused."""
        if self._exporter is None:
            self._exporter = self._create()
        delivered = False
        try:
            with reporting(self.should_report):
                result = self._exporter.export(batch, **kwargs)
            delivered = result.name == "SUCCESS"
        finally:
            with self._lock:
                self._delivered += self._size(batch) if delivered else 0
                self._refused += 0 if delivered else self._size(batch)
                self.failures += not delivered
                self._reported = self._reported and not delivered
        return result

    def force_flush(self, timeout_millis: float = 0) -> bool:  # noqa: ARG002 - the SDK's signature
        """Return True: the exporter keeps no items."""
        return True

    def shutdown(self, **kwargs: Any) -> None:
        """Shut the exporter down, unless it belongs to the parent of a fork."""
        if self._exporter is not None:
            self._exporter.shutdown(**kwargs)

    def _size(self, batch: Any) -> int:
        return len(batch)


class CountingMetricExporter(CountingExporter):
    """A wrapper of a metric exporter, which counts points: the reader creates them just before the export."""

    def export(self, batch: MetricsData, **kwargs: Any) -> Any:
        """Export a batch, and count its points as recorded, and as delivered or refused."""
        self.record(self._size(batch))
        return super().export(batch, **kwargs)

    def _size(self, batch: MetricsData) -> int:
        scopes = [scope for resource in batch.resource_metrics for scope in resource.scope_metrics]
        return sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)
