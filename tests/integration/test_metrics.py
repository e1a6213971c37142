"""The seventeen metrics: names, units, kinds, boundaries, attributes, and values against stats()."""

from __future__ import annotations

import gc
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics.export import Gauge, Histogram, Sum

from otel_pgpool import ConnectionPool, PoolTimeout, TooManyRequests, __version__
from otel_pgpool.telemetry import metrics
from tests.support.database import refused_port
from tests.support.internals import start_pass
from tests.support.metric_names import (
    BOUNDS,
    FAILURES,
    GAUGE,
    HISTOGRAM,
    LEVEL,
    LEVELS,
    METRICS,
    OBSERVED,
    POOL,
    TOTAL,
    TOTALS,
)
from tests.support.pools import let_lie
from tests.support.telemetry import NAME, SCHEMA, Signals, all_connects_told, queued, until

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from psycopg2.extensions import connection


def kind_of(metric: Any) -> str:
    data = metric.data
    if isinstance(data, Sum):
        return TOTAL if data.is_monotonic else LEVEL
    return {Gauge: GAUGE, Histogram: HISTOGRAM}[type(data)]


def histogram(signals: Signals, name: str, **rest: str) -> Any:
    """Return the only point of a duration with exactly these attributes, apart from the pool's name."""
    wanted = {POOL: NAME, **{key.replace("_", "."): value for key, value in rest.items()}}
    (point,) = [point for point in signals.points(f"db.client.connection.{name}") if dict(point.attributes) == wanted]
    return point


def test_all_but_failures(signals: Signals, dsn: str) -> None:
    """A pool without a failure has exactly sixteen metrics, each of its kind and unit, with a description."""
    with signals.pool(1, 1, dsn) as pool:
        with pool.connection():
            pass
        pool.drain()  # so that one has been discarded
        all_connects_told(pool)
        metrics = signals.metrics()
        assert {name: (kind_of(metric), metric.unit) for name, metric in metrics.items()} == {
            name: kind for name, kind in METRICS.items() if name != FAILURES
        }
        assert all(metric.description for metric in metrics.values())
        assert all(POOL in point.attributes for metric in metrics.values() for point in metric.data.data_points)
        (scope,) = [
            scope for each in signals.reader.get_metrics_data().resource_metrics for scope in each.scope_metrics
        ]
        assert (scope.scope.name, scope.scope.version) == ("otel_pgpool", __version__)
        assert scope.scope.schema_url == SCHEMA


@pytest.mark.parametrize("histograms", [[], ["create_time"]])
def test_connect_failures(signals: Signals, histograms: list[str]) -> None:
    """Each failed attempt to connect is counted by the type of its error, with or without histograms."""
    with refused_port() as port:
        pool = ConnectionPool(
            0,
            1,
            f"host=127.0.0.1 port={port}",
            name=NAME,
            max_retries=2,
            timeout=5,
            long_hold=None,
            observer=signals.telemetry(histograms=histograms),
        )
        with pytest.raises(PoolTimeout):
            pool.getconn()
        pool.close()
    all_connects_told(pool)
    (metric,) = [metric for name, metric in signals.metrics().items() if name == FAILURES]
    assert (kind_of(metric), metric.unit) == METRICS[FAILURES]
    failures = signals.values(FAILURES)
    assert list(failures) == [("OperationalError",)]
    assert failures["OperationalError",] >= 2


@pytest.mark.parametrize("name", BOUNDS)
def test_boundaries(signals: Signals, dsn: str, name: str) -> None:
    """The buckets lie where connections are waited for, made and held."""
    with signals.pool(1, 1, dsn) as pool:
        with pool.connection():
            pass
        all_connects_told(pool)
        assert histogram(signals, name).explicit_bounds == BOUNDS[name]


def test_levels(signals: Signals, dsn: str) -> None:
    """Levels are those of stats(), read at the moment of the collection."""
    with signals.pool(2, 4, dsn) as pool:
        held = [pool.getconn() for _ in range(4)]
        with queued(pool, lambda: pool.putconn(pool.getconn())):
            stats = pool.stats()
            assert signals.values("db.client.connection.count") == {("used",): 4, ("idle",): 0}
            assert signals.value("db.client.connection.max") == stats.maxconn == 4
            assert signals.value("db.client.connection.idle.min") == stats.minconn == 2
            assert signals.value("db.client.connection.idle.max") == stats.maxconn
            assert signals.value("db.client.connection.pending_requests") == stats.waiting == 1
            assert signals.value("otel_pgpool.utilization") == stats.utilization == 1.0
            oldest = stats.oldest_hold
            assert oldest <= signals.value("otel_pgpool.oldest_hold") <= pool.stats().oldest_hold
            pool.putconn(held.pop())
        for conn in held:
            pool.putconn(conn)
        assert signals.values("db.client.connection.count") == {("used",): 0, ("idle",): 4}
        assert signals.value("db.client.connection.pending_requests") == 0
        assert signals.value("otel_pgpool.utilization") == 0.0
        assert signals.value("otel_pgpool.oldest_hold") == 0.0
        pool.resize(1, 3)
        assert signals.value("db.client.connection.max") == 3
        assert signals.value("db.client.connection.idle.min") == 1


def test_totals(signals: Signals, dsn: str, admin: connection) -> None:
    """Totals are those of stats(): checkouts by path, timeouts, retries, long holds, created, discarded by reason."""
    with signals.pool(0, 1, dsn, long_hold=0.02) as pool:
        conn = pool.getconn()  # new
        with queued(pool, lambda: pool.putconn(pool.getconn())):  # queued
            until(lambda: pool.stats().long_holds)
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0)
            pool.putconn(conn)
        with pool.connection() as conn:  # idle
            pid = conn.get_backend_pid()
        with admin.cursor() as cur:
            cur.execute("select pg_terminate_backend(%s, 10000)", [pid])
        sleep(0.06)  # one used within the last 50 ms is lent without a look
        pool.putconn(pool.getconn(), close=True)  # found dead, then new
        assert signals.values("otel_pgpool.checkouts") == {("idle",): 1, ("queued",): 1, ("new",): 2}
        assert signals.value("db.client.connection.timeouts") == 1
        assert signals.value("otel_pgpool.retries") == 1
        assert signals.value("otel_pgpool.connections.created") == 2
        assert signals.values("otel_pgpool.connections.discarded") == {("broken",): 1, ("returned_closed",): 1}
        stats = pool.stats()
        assert signals.value("otel_pgpool.long_holds") == stats.long_holds >= 1
        assert {path: count for (path,), count in signals.values("otel_pgpool.checkouts").items()} == stats.checkouts
        assert signals.value("otel_pgpool.retries") == stats.retries
        assert signals.value("otel_pgpool.connections.created") == stats.created


def test_discards_by_reason(signals: Signals, dsn: str) -> None:
    """Each reason for which a connection goes has its own series."""
    with signals.pool(0, 2, dsn, max_idle=60) as pool:
        first, second = pool.getconn(), pool.getconn()
        pool.drain()
        pool.putconn(first)
        pool.putconn(second)
        first, second = pool.getconn(), pool.getconn()
        pool.putconn(first)
        pool.putconn(second)
        pool.resize(0, 1)
        del first, second
        conn = pool.getconn()
        del conn
        until(lambda: pool.stats().discarded.get("reclaimed"))
        pool.putconn(pool.getconn())
        let_lie(pool, 60)
        start_pass(pool)  # the maintenance looks now
        until(lambda: pool.stats().discarded.get("idle"))
        expected = {("drained",): 2, ("resized",): 1, ("reclaimed",): 1, ("idle",): 1}
        assert signals.values("otel_pgpool.connections.discarded") == expected


def test_durations(signals: Signals, dsn: str) -> None:
    """Each wait, hold and connect is recorded once, with its length, and all in all as stats() adds them up."""
    with signals.pool(0, 1, dsn, configure=lambda _conn: sleep(0.06)) as pool:
        with pool.connection():
            sleep(0.15)
        with pool.connection():
            pass
        all_connects_told(pool)
        stats = pool.stats()
        wait, use, create = (histogram(signals, name) for name in ("wait_time", "use_time", "create_time"))
        assert (wait.count, use.count, create.count) == (2, 2, 1)
        assert wait.max >= create.min >= 0.06
        assert use.max >= 0.15
        assert use.sum == pytest.approx(stats.hold_seconds)
        assert wait.sum == pytest.approx(stats.wait_seconds, abs=0.001)
        assert sum(use.bucket_counts) == 2


@pytest.mark.parametrize(("error_type", "outcome"), [("timeout", PoolTimeout), ("too_many_requests", TooManyRequests)])
def test_failed_waits(signals: Signals, dsn: str, error_type: str, outcome: type[Exception]) -> None:
    """A wait that failed is recorded under its error.type, apart from those that were served."""
    with signals.pool(1, 1, dsn, max_waiting=1) as pool:
        held = pool.getconn()
        with queued(pool, lambda: pool.putconn(pool.getconn())):
            with pytest.raises(outcome):
                pool.getconn(timeout=0 if outcome is PoolTimeout else None)
            assert histogram(signals, "wait_time", error_type=error_type).count == 1
            assert histogram(signals, "wait_time").count == 1
            pool.putconn(held)
        assert len(signals.points("db.client.connection.wait_time")) == 2


def test_failed_connects(signals: Signals, dsn: str) -> None:
    """A connect that failed is recorded under the name of its error, and a checkout that gave up likewise."""
    missing = iter([{"port": 1}])
    with signals.pool(0, 1, dsn, credentials=lambda: next(missing, {}), max_retries=1, open=False) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn()
        until(lambda: signals.points("db.client.connection.create_time"))
        assert histogram(signals, "create_time", error_type="OperationalError").count == 1
        assert histogram(signals, "wait_time", error_type="OperationalError").count == 1
        with pool.connection():
            pass
        all_connects_told(pool)
        assert histogram(signals, "create_time").count == 1


def test_exemplars_lead_to_the_trace(signals: Signals, dsn: str) -> None:
    """Wait and use are recorded in the checkout's context, though its span is not current, or has ended."""
    with signals.pool(1, 1, dsn) as pool:
        pool.putconn(pool.getconn())
        metrics = signals.metrics()  # a collection takes its exemplars with it
        for name in ("wait_time", "use_time"):
            (point,) = metrics[f"db.client.connection.{name}"].data.data_points
            assert_leads_to(point, signals.checkout())
        signals.spans.ended.clear()
        with pytest.raises(PoolTimeout), pool.connection():
            pool.getconn(timeout=0)
        failed = next(span for span in signals.named("pool.checkout") if (span.attributes or {}).get("error.type"))
        assert_leads_to(histogram(signals, "wait_time", error_type="timeout"), failed)


def test_exemplars_of_connects(signals: Signals, dsn: str) -> None:
    """The time of a connect leads to the connect's own span."""
    with signals.pool(0, 1, dsn) as pool:
        with pool.connection():
            pass
        all_connects_told(pool)
        assert_leads_to(histogram(signals, "create_time"), signals.one("pool.connect"))


def assert_leads_to(point: Any, span: ReadableSpan) -> None:
    (exemplar,) = point.exemplars
    context = span.get_span_context()
    assert context is not None
    assert (exemplar.trace_id, exemplar.span_id) == (context.trace_id, context.span_id)


def test_series_stop_after_close(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed pool reports no level any more, and its totals to their end; one that lives goes on."""
    with signals.pool(1, 1, dsn, name="stays"):
        with signals.pool(1, 1, dsn):
            assert all(signals.points(name) for name in OBSERVED if not name.endswith("discarded"))
        assert [name for name in LEVELS if signals.points(name)] == []
        assert all(signals.points(name) for name in TOTALS)
        assert signals.values("otel_pgpool.connections.discarded") == {("closed",): 1}
        monkeypatch.setattr(metrics, "KEPT_AFTER_THE_END", 0.0)
        assert [name for name in OBSERVED if signals.points(name)] == []
        assert all(signals.points(name, "stays") for name in OBSERVED if not name.endswith("discarded"))


def test_histograms_of_a_closed_pool_end_too(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their end is exported; a while later they are gone, unless a new pool has the name; those of others stay."""
    monkeypatch.setattr(metrics, "KEPT_AFTER_THE_END", 0.0)
    histograms = [f"db.client.connection.{short}" for short in BOUNDS]
    with signals.pool(1, 1, dsn, name="stays") as stays, stays.connection():
        for _ in range(2):
            with signals.pool(1, 1, dsn) as pool, pool.connection():
                all_connects_told(pool)
            assert len(signals.points(histograms[0])) == 1, "the end"
        assert [name for name in histograms if signals.points(name)] == []
        assert signals.points("db.client.connection.wait_time", "stays")


def test_each_pool_has_its_own_series(signals: Signals, dsn: str) -> None:
    """Pools of one provider differ in their names, even if they were created with the same one."""
    with signals.pool(1, 1, dsn) as first, signals.pool(2, 3, dsn) as second:
        assert (first.name, second.name) == (NAME, f"{NAME} #2")
        with second.connection():
            assert signals.value("db.client.connection.max") == 1
            assert signals.value("db.client.connection.max", pool_name=second.name) == 3
            assert signals.values("db.client.connection.count") == {("used",): 0, ("idle",): 1}
            counts = signals.values("db.client.connection.count", second.name)
            assert counts == {("used",): 1, ("idle",): 1}
        assert sum(signals.values("otel_pgpool.checkouts").values()) == 0
        assert sum(signals.values("otel_pgpool.checkouts", second.name).values()) == 1


def test_a_dropped_pool_is_forgotten(signals: Signals, dsn: str) -> None:
    """A pool that is garbage-collected without close() is not kept alive by its telemetry; its totals are reported."""
    pool = ConnectionPool(1, 1, dsn, name=NAME, observer=signals.telemetry())
    with pool.connection():
        pass
    assert signals.points("db.client.connection.max")
    del pool

    def gone() -> bool:
        gc.collect()
        return not signals.points("db.client.connection.max")

    until(gone)
    assert [name for name in LEVELS if signals.points(name)] == []
    assert signals.values("otel_pgpool.checkouts") == {("idle",): 1, ("queued",): 0, ("new",): 0}


def test_histograms_can_be_switched_off(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_PGPOOL_HISTOGRAMS names those that are recorded, the option goes before it."""

    def recorded(name: str, **telemetry: Any) -> set[str]:
        with signals.pool(1, 1, dsn, name=name, telemetry=telemetry) as pool, pool.connection():
            pass
        return {short for short in BOUNDS if signals.points(f"db.client.connection.{short}", name)}

    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "wait_time, create_time")
    assert recorded("two") == {"wait_time", "create_time"}
    assert recorded("one", histograms=["use_time"]) == {"use_time"}
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "none")
    assert recorded("none") == set()


def test_one_telemetry_for_each_pool(signals: Signals, dsn: str) -> None:
    """A Telemetry that belongs to one pool is refused by another, with both named in reach."""
    telemetry = signals.telemetry()
    first = ConnectionPool(0, 1, dsn, name="first", observer=telemetry)
    try:
        with pytest.raises(ValueError, match=r"observer.*'first'"):
            ConnectionPool(0, 1, dsn, name="second", observer=telemetry)
    finally:
        first.close()
