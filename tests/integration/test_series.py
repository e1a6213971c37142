"""How many series a pool has in Prometheus, as docs/operations.md says, for classic and for native histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation

from otel_pgpool import ConnectionPool, PoolTimeout, Telemetry
from otel_pgpool.types import DiscardReason
from tests.support.database import refused_port
from tests.support.documents import table
from tests.support.telemetry import all_connects_told, until

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATIONS = "docs/operations.md"
AT_WORK, REASON, CHECKOUT, CONNECT, CALLER = range(5)
"""Rows of the table."""
PROCESSES, INTERVAL = 2_000, 60

Counts = tuple[int, int]
"""Numbers of series with classic histograms and with native ones."""


def documented(row: int) -> Counts:
    _of, classic, native = table(OPERATIONS, "series")[row]
    return int(classic), int(native)


def plus(*counts: Counts) -> Counts:
    return sum(classic for classic, _native in counts), sum(native for _classic, native in counts)


class Readers:
    """A reader of classic histograms and one of exponential ones."""

    def __init__(self) -> None:
        exponential = InMemoryMetricReader(preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()})
        self._all = InMemoryMetricReader(), exponential
        self.provider = MeterProvider(self._all, shutdown_on_exit=False)

    def count(self) -> Counts:
        """Count the series that Prometheus makes of an export to each reader."""
        classic, native = (sum(map(series_of, points_of(reader))) for reader in self._all)
        return classic, native


def points_of(reader: InMemoryMetricReader) -> Iterator[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        yield from metric.data.data_points


def series_of(point: Any) -> int:
    """Return the number of a point's series; a classic histogram has its buckets, its sum and its count."""
    bounds = getattr(point, "explicit_bounds", None)
    return 1 if bounds is None else len(bounds) + len(["+Inf", "sum", "count"])


@pytest.fixture
def readers() -> Iterator[Readers]:
    readers = Readers()
    yield readers
    readers.provider.shutdown()


def pool_of(readers: Readers, dsn: str, **options: Any) -> ConnectionPool:
    return ConnectionPool(0, 1, dsn, long_hold=None, observer=Telemetry(None, readers.provider), **options)


def borrow(pool: ConnectionPool) -> None:
    pool.putconn(pool.getconn())


def test_a_pool_at_work(readers: Readers, dsn: str) -> None:
    """Each further reason of a discard, and each type of error, adds what the table says."""
    with pool_of(readers, dsn) as pool:
        pool.putconn(pool.getconn())
        all_connects_told(pool)
        assert readers.count() == documented(AT_WORK)
        pool.putconn(pool.getconn(), close=True)
        all_connects_told(pool)
        assert readers.count() == plus(documented(AT_WORK), documented(REASON))
        with pool.connection(), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        assert readers.count() == plus(documented(AT_WORK), documented(REASON), documented(CHECKOUT))


def test_failed_connects(readers: Readers) -> None:
    """A pool that never got a connection has no histograms but those of its failures."""
    (classic, native), histograms = documented(AT_WORK), (13 + 15 + 13, 3)
    levels = classic - histograms[0], native - histograms[1]
    with refused_port() as port, pool_of(readers, f"host=127.0.0.1 port={port}", timeout=0.2) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn()
        until(lambda: readers.count() == plus(levels, documented(CHECKOUT), documented(CONNECT)))


def test_callers(readers: Readers, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them; the first one's holds are one more series than without callers."""
    monkeypatch.setenv("OTEL_PGPOOL_CALLER", "1")
    with pool_of(readers, dsn) as pool:
        pool.putconn(pool.getconn())
        all_connects_told(pool)
        assert readers.count() == plus(documented(AT_WORK), (1, 1))
        borrow(pool)
        assert readers.count() == plus(documented(AT_WORK), (1, 1), documented(CALLER))


def test_the_sums_of_the_page() -> None:
    """With each reason; of 2,000 processes; and that there are so many reasons."""
    rows = {row[0]: [int(cell) for cell in row[1:]] for row in table(OPERATIONS, "fleet")}
    classic, native = documented(AT_WORK)
    assert rows["series"] == [PROCESSES * classic, PROCESSES * native, PROCESSES * native]
    assert rows["samples in a second"] == [round(series / INTERVAL) for series in rows["series"]]
    reasons = len(DiscardReason)
    assert plus(documented(AT_WORK), *[documented(REASON)] * reasons) == (69, 31)
    assert f"of {reasons}" in table(OPERATIONS, "series")[REASON][0]
