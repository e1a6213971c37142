"""Connections of psycopg_pool's pools: how they are opened, checked and discarded."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout

from otel_pgpool import PgPoolInstrumentor
from tests.support.database import kill, refused_port
from tests.support.instrumentation import instrumented, name_of, tracker_of
from tests.support.psycopg_pools import BLOCKING, RELEASE, assert_same_totals, backend, opened, settled
from tests.support.telemetry import until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.telemetry import Signals

Pool = Any

pytestmark = pytest.mark.usefixtures("instrumentation")


def check(conn: Any) -> None:
    """Raise if the connection is dead; `ConnectionPool.check_connection` is newer than the oldest release."""
    conn.execute("select 1")
    conn.rollback()


def outcome_of(signals: Signals) -> tuple[Any, Any]:
    attributes = signals.named("pool.checkout")[-1].attributes or {}
    return attributes["otel_pgpool.outcome"], attributes.get("error.type")


# Discarded at the release


@pytest.mark.parametrize("cls", BLOCKING)
def test_closed_by_the_application(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    with opened(cls, dsn, 1) as pool:
        conn = pool.getconn()
        conn.close()
        pool.putconn(conn)
        assert outcome_of(signals) == ("discarded", None)
        assert tracker_of(pool).discards == {"returned_closed": 1}
        if cls is ConnectionPool:
            assert until(lambda: pool.get_stats()["pool_available"])
        assert_same_totals(pool)


@pytest.mark.parametrize("cls", BLOCKING)
def test_broken_in_use(signals: Signals, dsn: str, admin: connection, cls: type[Pool]) -> None:
    with opened(cls, dsn, 1) as pool:
        conn = pool.getconn()
        kill(admin, [backend(conn)])
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")
        pool.putconn(conn)
        assert outcome_of(signals) == ("discarded", None)
        assert tracker_of(pool).discards == {"broken": 1}
        (record,) = signals.logged("connection_lost")
        assert "broken" in record.record.getMessage()


def test_statement_in_progress(signals: Signals, dsn: str) -> None:
    """The pool closes a connection that is released while a statement runs."""
    with opened(ConnectionPool, dsn, 1) as pool:
        conn = pool.getconn()
        conn.pgconn.send_query(b"select pg_sleep(10)")
        pool.putconn(conn)
        assert outcome_of(signals) == ("discarded", None)
        assert tracker_of(pool).discards == {"broken": 1}


def test_rolled_back_transaction(signals: Signals, dsn: str) -> None:
    """The pool rolls back, and keeps the connection."""
    with opened(ConnectionPool, dsn, 1) as pool:
        conn = pool.getconn()
        conn.execute("create temporary table t ()")
        pool.putconn(conn)
        assert outcome_of(signals) == ("released", None)
        assert not tracker_of(pool).discards
        assert pool._pool[0] is conn


def test_reset_in_a_worker(signals: Signals, dsn: str) -> None:
    """The hold ends at the release; a reset that fails in a worker discards the connection afterwards."""
    fails = threading.Event()

    def reset(conn: Any) -> None:
        if fails.is_set():
            raise ValueError("a reset of the application")

    with opened(ConnectionPool, dsn, 1, reset=reset) as pool:
        for _ in range(2):
            pool.putconn(pool.getconn())
            assert outcome_of(signals) == ("released", None)
            fails.set()
        assert until(lambda: tracker_of(pool).discards)
        assert tracker_of(pool).discards == {"reset_failed": 1}
        fails.clear()
        settled(pool)


@pytest.mark.parametrize(("option", "reason"), [({"max_lifetime": 0.02}, "expired"), ({}, "drained")])
def test_retired_at_the_release(signals: Signals, dsn: str, option: dict[str, float], reason: str) -> None:
    """A connection that is too old, or older than ``drain()``, is discarded, which is no fault of the checkout."""
    with opened(ConnectionPool, dsn, 1, **option) as pool:
        if reason == "drained" and not hasattr(pool, "drain"):
            pytest.skip("psycopg_pool has drain() since 3.3")
        conn = pool.getconn()
        if option:
            assert until(lambda: conn._expire_at <= time.monotonic())
        else:
            pool.drain()
        pool.putconn(conn)
        assert outcome_of(signals) == ("released", None)
        assert tracker_of(pool).discards == {reason: 1}


def test_null_pool_keeps_none(signals: Signals, dsn: str) -> None:
    """Each connection is discarded at its release, unless a waiter receives it."""
    with opened(NullConnectionPool, dsn, 1) as pool:
        conn = pool.getconn()
        waiter = in_thread(pool.getconn)
        assert until(lambda: tracker_of(pool).stats().waiting)
        pool.putconn(conn)
        assert waiter.result(10) is conn
        assert not tracker_of(pool).discards
        pool.putconn(conn)
        assert outcome_of(signals) == ("released", None)
        assert tracker_of(pool).discards == {"idle": 1}
        assert tracker_of(pool).stats().checkouts == {"idle": 0, "queued": 1, "new": 1}
        assert_same_totals(pool)


# Discarded while idle


def test_drain(dsn: str) -> None:
    with opened(ConnectionPool, dsn, 2) as pool:
        if not hasattr(pool, "drain"):
            pytest.skip("psycopg_pool has drain() since 3.3")
        settled(pool)
        pool.drain()
        assert tracker_of(pool).discards == {"drained": 2}


def test_close(signals: Signals, dsn: str) -> None:
    with opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        tracker = tracker_of(pool)
    assert tracker.discards == {"closed": 2}
    assert tracker.closed


def test_shrink(dsn: str) -> None:
    """A connection above ``min_size`` that was not needed for ``max_idle`` is discarded."""
    with opened(ConnectionPool, dsn, 1, max_size=2, max_idle=0.1) as pool:
        with pool.connection(), pool.connection():
            pass
        assert until(lambda: tracker_of(pool).discards)
        assert tracker_of(pool).discards == {"idle": 1}
        assert tracker_of(pool).stats().size == 1


def test_check_of_the_pool(dsn: str, admin: connection) -> None:
    """``check()`` discards dead connections."""
    with opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        kill(admin, [pool._pool[0].info.backend_pid])
        pool.check()
        assert tracker_of(pool).discards == {"check_failed": 1}


@pytest.mark.parametrize("spans", ["always", "off"])
def test_check_of_the_pool_during_a_hold(dsn: str, spans: str) -> None:
    """A connection that its holder closes while ``check()`` runs was not discarded by the check."""
    held: list[Any] = []

    class Connection(psycopg.Connection[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            if held == [] and pool.get_stats()["pool_available"]:  # the other connection was checked, and is idle again
                held.append(pool.getconn())
                held[0].close()
            return super().execute(*args, **kwargs)

    PgPoolInstrumentor().uninstrument()
    with instrumented(spans=spans), opened(ConnectionPool, dsn, 2, connection_class=Connection) as pool:
        settled(pool)
        pool.check()
        tracker = tracker_of(pool)
        assert (len(tracker.all_held()), tracker.discards) == (1, {})
        pool.putconn(held[0])
        assert tracker.discards == {"returned_closed": 1}


# The application's check


def test_failed_check_is_a_retry(signals: Signals, dsn: str, admin: connection) -> None:
    """A dead connection that the check finds is discarded, and the caller gets another one."""
    with opened(ConnectionPool, dsn, 2, check=check) as pool:
        settled(pool)
        kill(admin, [pool._pool[0].info.backend_pid])
        with pool.connection() as conn:
            backend(conn)
        span = signals.checkout()
        assert (span.attributes or {})["otel_pgpool.retries"] == 1
        (event,) = [event for event in span.events if event.name == "pool.retry"]
        assert (event.attributes or {})["error.type"] == "57P01"
        assert tracker_of(pool).discards == {"check_failed": 1}
        assert tracker_of(pool).stats().retries == 1
        assert not tracker_of(pool).adapter._calls._failed_checks  # type: ignore[attr-defined]
        assert_same_totals(pool)


def test_interrupted_check(signals: Signals, dsn: str) -> None:
    """An interrupt during the check is no retry: the pool does not try again."""

    def interrupted(conn: Any) -> None:
        raise KeyboardInterrupt

    with opened(ConnectionPool, dsn, 1, check=interrupted) as pool:
        settled(pool)
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
        assert (signals.checkout().attributes or {})["otel_pgpool.retries"] == 0
        assert tracker_of(pool).stats().retries == 0
        assert not tracker_of(pool).discards


def test_levels_during_a_check(signals: Signals, dsn: str, admin: connection) -> None:
    """A dead connection that the check has found takes up no place; one that its holder has closed does."""
    replacing, goes_on = threading.Event(), threading.Event()

    def connect_later(*args: Any, **kwargs: Any) -> Any:
        replacing.set()
        assert goes_on.wait(PATIENCE)
        return connect(*args, **kwargs)

    with opened(ConnectionPool, dsn, 3, check=check) as pool:
        settled(pool)
        held = pool.getconn()
        kill(admin, [conn.info.backend_pid for conn in [*pool._pool]])
        connect, pool._connect = pool._connect, connect_later
        waiter = in_thread(pool.getconn)
        assert replacing.wait(PATIENCE)
        assert until(lambda: tracker_of(pool).stats().waiting)
        held.close()
        assert (tracker_of(pool).stats().used, tracker_of(pool).stats().idle) == (1, 0)
        goes_on.set()
        pool.putconn(waiter.result(PATIENCE))
        pool.putconn(held)
        assert not signals.logged("utilization_critical")


def test_check_that_always_fails(signals: Signals, dsn: str) -> None:
    """The caller gets the pool's timeout, and a connection that is alive stays in the pool."""
    if RELEASE < (3, 3):
        pytest.skip("psycopg_pool before 3.3 repeats a failing check without end")

    def refuse(conn: Any) -> None:
        raise ValueError("a check of the application")

    with opened(ConnectionPool, dsn, 1, check=refuse) as pool:
        settled(pool)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.05)
        attributes = signals.checkout().attributes or {}
        assert attributes["otel_pgpool.outcome"] == "timeout"
        assert attributes["otel_pgpool.retries"] >= 1
        assert not tracker_of(pool).discards
        assert "a check of the application" not in signals.everything()


# Connects


def test_background_connects(signals: Signals, dsn: str) -> None:
    """Workers open ``min_size`` connections, each a connect of its own trace."""
    with opened(ConnectionPool, dsn, 3) as pool:
        settled(pool)
        connects = signals.named("pool.connect")
        assert len(connects) == 3
        assert all(span.parent is None for span in connects)
        assert len(signals.logged("connected")) == 3
        stats = tracker_of(pool).stats()
        assert (stats.minconn, stats.maxconn, stats.idle, stats.used, stats.connecting) == (3, 3, 3, 0, 0)


def test_outage(signals: Signals, own_server: PostgresServer) -> None:
    """A server that is down is an outage, reported as soon as a worker finds it; its end is reported too."""
    with opened(ConnectionPool, own_server.dsn, 1) as pool:
        settled(pool)
        own_server.stop()
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            conn.execute("select 1")
        assert until(lambda: signals.logged("outage_started"))
        assert tracker_of(pool).stats().status == "unreachable"
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.01)
        own_server.start()
        with pool.connection() as conn:
            conn.execute("select 1")
        assert until(lambda: signals.logged("outage_ended"))
        assert tracker_of(pool).stats().status == "ok"


def test_refused_connect(signals: Signals, dsn: str) -> None:
    """A refusal of the server is no outage, and its text is shown without secrets."""
    with opened(NullConnectionPool, dsn, 1, kwargs={"dbname": "nowhere"}) as pool:
        with pytest.raises(psycopg.OperationalError, match="nowhere"):
            pool.getconn()
        (connect,) = signals.named("pool.connect")
        assert connect.status.description is not None
        assert 'database "nowhere" does not exist' in connect.status.description
        assert outcome_of(signals) == ("error", "OperationalError")
        assert signals.logged("connect_refused")
        assert not signals.logged("outage_started")
        assert_same_totals(pool, failed_connects=1, uncounted=1)


def test_connect_that_fails_in_a_caller(signals: Signals, dsn: str) -> None:
    """A pool without idle connections connects in the caller, whose trace has the connect."""
    with refused_port() as port, opened(NullConnectionPool, f"host=127.0.0.1 port={port} dbname=x", 1) as pool:
        with pytest.raises(psycopg.OperationalError):
            pool.getconn()
        (connect,), checkout = signals.named("pool.connect"), signals.checkout()
        assert connect.parent is not None
        assert checkout.context is not None
        assert connect.parent.span_id == checkout.context.span_id
        assert signals.logged("outage_started")
        assert_same_totals(pool, failed_connects=1, uncounted=1)


def test_configure_that_fails(signals: Signals, dsn: str) -> None:
    """An error of ``configure`` is a failed connect; its text is the application's, and not shown."""

    def configure(conn: Any) -> None:
        raise ValueError("secret-word")

    with opened(NullConnectionPool, dsn, 1, configure=configure) as pool, pytest.raises(ValueError, match="secret"):
        pool.getconn()
    assert outcome_of(signals) == ("error", "ValueError")
    assert "secret-word" not in signals.everything()


def test_dropped_connection(signals: Signals, dsn: str) -> None:
    """A connection that its holder drops is reported as reclaimed; its place in the pool is lost."""
    with opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        pool.getconn()  # and dropped
        assert until(lambda: signals.named("pool.checkout"))
        assert signals.logged("reclaimed")
        assert outcome_of(signals) == ("reclaimed", None)
        stats = tracker_of(pool).stats()
        assert (stats.used, stats.idle) == (1, 1)
        assert pool.get_stats()["pool_size"] == 2


def test_long_hold(signals: Signals, dsn: str) -> None:
    """A long hold is reported while it lasts, with the state of its transaction."""
    PgPoolInstrumentor().uninstrument()
    with instrumented(signals, long_hold=0.25), opened(ConnectionPool, dsn, 1) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
            assert until(lambda: signals.logged("long_hold"))
        (record,) = signals.logged("long_hold")
        assert record.attributes["otel_pgpool.transaction.status"] == "in_transaction"
        assert " test_long_hold" in record.record.getMessage()
        assert record.attributes["db.client.connection.pool.name"] == name_of(dsn)
