"""Pools that count by hand, and readers of the real SDK, so that what a reader is told of totals can be compared."""

from __future__ import annotations

import gc
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import Counter as SyncCounter
from opentelemetry.sdk.metrics import Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from otel_pgpool.stats import LastFigures, PoolStats, leave_figures
from otel_pgpool.telemetry import metrics
from otel_pgpool.telemetry.metrics import Instruments
from tests.support.telemetry import NAME as POOL_NAME
from tests.support.telemetry import Signals, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterator, Sequence

    import pytest
    from opentelemetry.sdk.metrics.view import View

NAME, PATH = "db.client.connection.pool.name", "otel_pgpool.path"
TIMEOUTS, CHECKOUTS, DISCARDED = (
    "db.client.connection.timeouts",
    "otel_pgpool.checkouts",
    "otel_pgpool.connections.discarded",
)
CREATED = "otel_pgpool.connections.created"
WAIT_TIME, MAX = "db.client.connection.wait_time", "db.client.connection.max"
DELTA = dict.fromkeys((ObservableCounter, SyncCounter, Histogram), AggregationTemporality.DELTA)


class Pool:
    """One whose figures are set by hand."""

    def __init__(self, name: str = "shop") -> None:
        self.name = name
        self.closed = False
        self.last_figures = LastFigures()
        self.timeouts = 0
        self.served = 0
        self.closed_connections: Counter[str] = Counter()
        self.oldest_hold = 0.0

    def stats(self) -> PoolStats:
        return PoolStats(
            name=self.name,
            status="ok",
            minconn=0,
            maxconn=5,
            size=0,
            used=0,
            idle=0,
            connecting=0,
            waiting=0,
            utilization=0.0,
            oldest_hold=self.oldest_hold,
            timeouts=self.timeouts,
            checkouts={"idle": self.served, "queued": 0, "new": 0},
            discarded=dict(self.closed_connections),
        )

    __del__ = leave_figures


class Reader:
    """Asks for metrics, and checks each time that no total has gone down."""

    def __init__(self, *, delta: bool = False) -> None:
        self.inner = InMemoryMetricReader(preferred_temporality=DELTA if delta else None)  # type: ignore[arg-type]
        self.is_delta = delta
        self.total: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        """What a backend has for each metric and pool, by the other attribute."""
        self.began: dict[tuple[str, str, str], int] = {}
        self.resets: Counter[str] = Counter()
        """By metric, how often a sum began anew, with a later start, as OTLP allows."""

    def ask(self) -> dict[str, dict[str, Any]]:
        """Return what is reported now: a metric's points by pool name, or the sum of totals."""
        data = self.inner.get_metrics_data()
        told: dict[str, dict[str, Any]] = {}
        for metric in [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics:
            points = told[metric.name] = {}
            for point in metric.data.data_points:
                attributes = dict(point.attributes)
                name = attributes.pop(NAME, "")
                if getattr(metric.data, "is_monotonic", False):
                    self._take(metric.name, name, "".join(attributes.values()), point)
                    points[name] = points.get(name, 0) + point.value
                else:
                    points[name] = point.count if hasattr(point, "count") else point.value
        return told

    def _take(self, metric: str, name: str, rest: str, point: Any) -> None:
        known, series = self.total[metric, name], (metric, name, rest)
        is_new = self.began.get(series) != point.start_time_unix_nano
        self.resets[metric] += is_new and series in self.began and not self.is_delta
        self.began[series] = point.start_time_unix_nano
        before = 0 if self.is_delta or is_new else known[rest]
        assert point.value >= before, (series, point.value, before)
        known[rest] += point.value - before

    def sum_of(self, metric: str, name: str = "shop") -> int:
        return sum(self.total[metric, name].values())


class Readers:
    """One that is told increments, one that is told sums; each fails where a total goes down."""

    def __init__(self, signals: Signals) -> None:
        self.all = Reader(delta=True), Reader()
        for reader in self.all:
            signals.meter_provider.add_metric_reader(reader.inner)

    def told(self, metric: str, name: str = POOL_NAME) -> int:
        """Return what both readers get when they collect; collect again if something was counted in between."""
        for _ in range(3):
            for reader in self.all:
                reader.ask()
            totals = {reader.sum_of(metric, name) for reader in self.all}
            if len(totals) == 1:
                break
        (total,) = totals
        return total


@contextmanager
def collecting(readers: Sequence[Reader]) -> Iterator[None]:
    """Let each reader collect all the time, in a thread of its own."""
    ended = threading.Event()

    def collect(reader: Reader) -> None:
        while not ended.is_set():
            reader.ask()

    threads = [in_thread(lambda reader=reader: collect(reader)) for reader in readers]
    try:
        yield
    finally:
        ended.set()
    for each in threads:
        each.result(PATIENCE)


class Meter:
    """The instruments of one provider with these readers, and a clock set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None, *readers: Reader, views: Sequence[View] = ()) -> None:
        self.readers = readers
        self.provider = MeterProvider([reader.inner for reader in readers], views=views, shutdown_on_exit=False)
        self.instruments = Instruments(self.provider)
        self.now = 1_000.0
        if monkeypatch is not None:
            monkeypatch.setattr(metrics, "monotonic", lambda: self.now)

    def pool(self, name: str = "shop", **figures: Any) -> Pool:
        pool = Pool(name)
        for figure, value in figures.items():
            setattr(pool, figure, value)
        self.instruments.report(pool)
        return pool

    def wait(self, name: str, seconds: float = 0.01) -> None:
        self.instruments.wait_time.record(seconds, {NAME: name})

    def ask(self) -> list[dict[str, dict[str, Any]]]:
        """Let every reader ask."""
        return [reader.ask() for reader in self.readers]

    def pass_on(self, seconds: float) -> None:
        self.now += seconds

    def kept_by_the_sdk(self) -> int:
        """How many series the SDK has, for all readers."""
        storages = self.provider._measurement_consumer._reader_storages.values()  # type: ignore[attr-defined]
        return sum(
            len(match._attributes_aggregation)
            for storage in storages
            for matches in storage._instrument_view_instrument_matches.values()
            for match in matches
        )


def until_collected(ref: weakref.ref[Any]) -> None:
    """Wait until what it refers to is gone: a thread that looks after it may have it for a moment."""

    def is_gone() -> bool:
        gc.collect()
        return ref() is None

    until(is_gone)
