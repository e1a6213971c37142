"""Whatever telemetry does wrong, the application sees nothing of it and the pool loses no connection."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from otel_pgpool import ConnectionPool, PoolObserver, PoolTimeout
from otel_pgpool.telemetry import Telemetry
from tests.support.broken_telemetry import BrokenAtEnd, BrokenAtStart, BrokenError, BrokenSampler, broken
from tests.support.telemetry import PATIENCE, Signals, queued, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

METHODS = [name for name in vars(PoolObserver) if not name.startswith("_")]


class BrokenExporter(SpanExporter):
    export = shutdown = broken


class Color(Enum):
    RED = 1


class BrokenInAnEnum(SpanProcessor):
    """By a function that the ``Enum`` of the signals' default actions has in common with every other."""

    def on_end(self, _span: object) -> None:
        Color(7)


class BrokenHandler(logging.Handler):
    emit = broken


class BrokenMeterProvider(MeterProvider):
    """Its histograms raise."""

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        meter = super().get_meter(*args, **kwargs)
        create = meter.create_histogram

        def create_broken(*args: Any, **kwargs: Any) -> Any:
            histogram = create(*args, **kwargs)
            histogram.record = broken
            return histogram

        meter.create_histogram = create_broken
        return meter


def raising_in(*methods: str) -> Any:
    """Return an application's own observer, which raises in these methods and counts its calls."""
    calls: list[str] = []

    def method(name: str) -> Any:
        def call(*_args: object) -> None:
            calls.append(name)
            if name in methods:
                raise BrokenError(name)

        return call

    observer = type("Observer", (), {name: staticmethod(method(name)) for name in METHODS})()
    observer.calls = calls
    return observer


@contextmanager
def observed_by(dsn: str, observer: Any, maxconn: int = 2, **options: Any) -> Iterator[ConnectionPool]:
    settings: dict[str, Any] = {"name": "shop", "timeout": PATIENCE, "long_hold": 0.02, "observer": observer}
    pool = ConnectionPool(1, maxconn, dsn, **settings | options)
    try:
        yield pool
    finally:
        pool.close(0)


def ask(conn: connection) -> int:
    with conn.cursor() as cur:
        cur.execute("select 42")
        (answer,) = cur.fetchone()
        return int(answer)


def work_through(pool: ConnectionPool, admin: connection) -> None:
    """Every path and outcome, exactly as without telemetry; at the end nothing is missing."""
    with pool.connection() as conn:  # idle
        assert ask(conn) == 42
        with pool.connection() as second:  # new
            assert ask(second) == 42
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0)
            with queued(pool, lambda: pool.putconn(pool.getconn())):
                until(lambda: pool.stats().long_holds == 2)
                with pytest.raises(PoolTimeout):
                    pool.getconn(timeout=0.02)
                second.close()  # discarded when it comes back, and the waiter gets a new one
                pool.resize(1, 3)
    pool.resize(1, 2)
    with pytest.raises(ZeroDivisionError), pool.connection():
        raise ZeroDivisionError
    conn = pool.getconn()
    with admin.cursor() as cur:
        cur.execute("select pg_terminate_backend(%s, 10000)", [conn.get_backend_pid()])
    pool.putconn(conn)
    del conn
    conn = pool.getconn()
    del conn
    until(lambda: pool.stats().discarded.get("reclaimed") == 1)
    assert_whole(pool)


def assert_whole(pool: ConnectionPool) -> None:
    """Nothing is out, and all of maxconn can be lent at once."""
    assert pool.stats().used == 0
    conns = [pool.getconn(timeout=5) for _ in range(pool.maxconn)]
    assert [ask(conn) for conn in conns] == [42] * pool.maxconn
    for conn in conns:
        pool.putconn(conn)
    assert pool.stats().used == 0
    assert trace.get_current_span() is trace.INVALID_SPAN


def laments(signals: Signals) -> list[logging.LogRecord]:
    """Return the pool's log records about its observer."""
    records = [record.record for record in list(signals.records.all)]
    return [record for record in records if "observer raised" in record.getMessage()]


def provider_with(processor: SpanProcessor) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Suppress the SDK's own records about the faults."""
    caplog.set_level(logging.CRITICAL, "opentelemetry")


@pytest.mark.parametrize(
    "make",
    [
        lambda: provider_with(SimpleSpanProcessor(BrokenExporter())),
        lambda: provider_with(BrokenAtStart()),
        lambda: provider_with(BrokenAtEnd()),
        lambda: provider_with(BrokenInAnEnum()),
        lambda: TracerProvider(sampler=BrokenSampler(), shutdown_on_exit=False),
    ],
    ids=["exporter", "on_start", "on_end", "enum", "sampler"],
)
def test_broken_tracing(dsn: str, admin: connection, quiet: None, make: Any) -> None:
    """An exporter, a span processor or a sampler that raises."""
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    with observed_by(dsn, Telemetry(make(), meters)) as pool:
        work_through(pool, admin)
    meters.shutdown()


def test_broken_metrics(dsn: str, admin: connection, quiet: None) -> None:
    """Histograms that raise."""
    meters = BrokenMeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    with Signals() as signals, observed_by(dsn, Telemetry(signals.tracer_provider, meters)) as pool:
        work_through(pool, admin)
        until(lambda: not signals.live())  # a dropped connection is told after its place is free
    meters.shutdown()


def test_broken_log_handler(dsn: str, admin: connection) -> None:
    """A handler of the logger that raises instead of handling its own error: the records are lost, nothing else is."""
    handler = BrokenHandler()
    with Signals() as signals:
        logging.getLogger("otel_pgpool").addHandler(handler)
        try:
            with signals.pool(1, 2, dsn, long_hold=0.02) as pool:
                work_through(pool, admin)
                until(lambda: not signals.live())  # a dropped connection is told after its place is free
                uses = sum(point.count for point in signals.points("db.client.connection.use_time"))
                assert uses == sum(pool.stats().checkouts.values())
        finally:
            logging.getLogger("otel_pgpool").removeHandler(handler)


def test_observer_that_raises_everywhere(dsn: str, admin: connection) -> None:
    """The errors of an observer that raises in every method but ``attached`` are logged once a minute."""
    observer = raising_in(*(name for name in METHODS if name != "attached"))
    with Signals() as signals, observed_by(dsn, observer) as pool:
        work_through(pool, admin)
        told = {"started", "acquired", "released", "failed", "held_long", "connected", "discarded", "reclaimed"}
        until(lambda: told <= set(observer.calls))
        (lament,) = [record for record in laments(signals) if record.levelno > logging.DEBUG]
        assert (lament.name, lament.levelno) == ("otel_pgpool", logging.ERROR)
        assert "BrokenError" in logging.Formatter().format(lament)
        assert "shop" in lament.getMessage()


@pytest.mark.parametrize("method", ["connected", "started", "acquired"])
def test_a_lament_holds_no_connection(dsn: str, method: str) -> None:
    """Whoever keeps the record of an observer's error keeps no connection with it: a dropped one is reclaimed."""
    with Signals() as signals, observed_by(dsn, raising_in(method), maxconn=1, long_hold=None) as pool:
        conn = pool.getconn()
        until(lambda: laments(signals))
        assert ask(conn) == 42
        del conn
        until(lambda: pool.stats().discarded.get("reclaimed") == 1)


def test_a_lament_tells_no_secrets(dsn: str) -> None:
    """An observer that raises while an error of the caller's is handled: its DETAIL and its SQL stay out of the log."""
    with Signals() as signals, observed_by(dsn, raising_in("released")) as pool:
        with pytest.raises(psycopg2.IntegrityError) as raised, pool.connection() as conn:  # noqa: PT012 - its end raises
            cur = conn.cursor()
            cur.execute("create temporary table t (w text unique deferrable initially deferred)")
            cur.execute("insert into t values (%s), (%s)", ["d3tail", "d3tail"])
        assert "d3tail" in str(raised.value)
        shown = [logging.Formatter().format(record.record) for record in signals.records.all]
    assert any("observer raised" in text for text in shown)
    assert "d3tail" not in "".join(shown)
    assert "insert into" not in "".join(shown)


@pytest.mark.parametrize("method", ["started", "acquired", "released", "failed", "discarded"])
def test_ctrl_c_inside_an_observer(dsn: str, method: str) -> None:
    """KeyboardInterrupt inside an observer comes out where the borrower is, and the connection is not lost."""
    armed: list[str] = []

    def interrupt(*_args: object) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    observer = raising_in()
    setattr(observer, method, interrupt)
    with observed_by(dsn, observer, long_hold=None) as pool:
        conns = [pool.getconn() for _ in range(2)]
        if method == "failed":
            armed.append(method)
            with pytest.raises(KeyboardInterrupt):
                pool.getconn(timeout=0)
        for conn in conns:
            pool.putconn(conn)
        if method != "failed":
            armed.append(method)
            with pytest.raises(KeyboardInterrupt), pool.connection() as conn:  # noqa: PT012 - its end raises
                if method == "discarded":
                    conn.close()
        assert not armed
        until(lambda: pool.stats().used == 0)
        assert_whole(pool)


def test_observer_that_refuses_the_pool(dsn: str) -> None:
    """An observer that raises when the pool introduces itself has refused it: that comes out, and leaves nothing."""
    with pytest.raises(BrokenError):
        ConnectionPool(1, 1, dsn, observer=raising_in("attached"))
