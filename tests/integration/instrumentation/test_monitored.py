"""The database's side of instrumented pools' long holds, with ``OTEL_PGPOOL_DATABASE_STATE=all``, for each kind."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import weakref
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from psycopg2 import extensions
from psycopg2.pool import PoolError, ThreadedConnectionPool

from otel_pgpool.driver import monitor_connection
from otel_pgpool.instrumentation.adapters import monitor as bounded
from otel_pgpool.pool import monitor, monitors, server_queries
from tests.support.database import ask, kill
from tests.support.instrumentation import instrumented
from tests.support.monitored_pools import KINDS, SIZE, opened
from tests.support.processes import frozen, in_child
from tests.support.sqlalchemy_drivers import allow_quick_passwords
from tests.support.telemetry import until
from tests.support.urls import url_of
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.support.telemetry import Signals

LONG = 0.2
"""Seconds after which a hold is long here."""
ON_TIME = LONG + 0.25
MONITORS = "from pg_stat_activity where application_name = 'otel_pgpool monitor'"
DRIVERS = [kind for kind in KINDS if kind in ("psycopg2", "psycopg_pool", "asyncpg", "sqlalchemy-pg8000")]
DRIVERS += [kind for kind in KINDS if kind == "sqlalchemy-psycopg-asyncio"]
"""One kind for each class of monitoring connections."""

every_kind = pytest.mark.parametrize("kind", KINDS)
every_driver = pytest.mark.parametrize("kind", DRIVERS)


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch instrumented pools too, and more often than once a second."""
    monkeypatch.setenv("OTEL_PGPOOL_DATABASE_STATE", "all")
    monkeypatch.setattr(server_queries, "QUERY_INTERVAL", 0.05)
    allow_quick_passwords(monkeypatch)


@contextmanager
def table(dsn: str) -> Iterator[None]:
    """Provide a table to lock."""
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("create table if not exists stock (id int)")
    yield
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("drop table stock")


@contextmanager
def held(pool: Any, *statements: str) -> Iterator[Any]:
    """Hold a connection that has run these statements."""
    conn = pool.acquire()
    try:
        for statement in statements:
            pool.run(conn, statement)
        yield conn
    finally:
        pool.release(conn)


def states(span: ReadableSpan) -> list[dict[str, Any]]:
    return [dict(event.attributes or {}) for event in span.events if event.name == "pool.database_state"]


def blocked(signals: Signals) -> list[ReadableSpan]:
    """Return the spans of the holds in progress of which the server says that others block them."""
    found = [span for span in signals.live() if any("postgresql.blocking.pids" in state for state in states(span))]
    return [span for span in found if span.links]


def texts(signals: Signals) -> list[str]:
    return [record.record.getMessage() for record in list(signals.records.all)]


def unknown(signals: Signals) -> list[str]:
    """Return the records which say that the state of holds is unknown."""
    return [text for text in texts(signals) if "database state of long holds is unknown" in text]


def hold_times(signals: Signals) -> list[float]:
    return [record.attributes["otel_pgpool.held"] for record in signals.logged("long_hold")]


def is_without_monitors(admin: extensions.connection) -> bool:
    """Wait until no monitoring connection and no thread of a monitor is left."""
    return bool(
        until(lambda: not ask(admin, f"select count(*) {MONITORS}"))
        and until(lambda: "otel_pgpool-monitor" not in {thread.name for thread in threading.enumerate()})
    )


@every_kind
def test_a_hold_that_another_pool_blocks(kind: str, dsn: str, signals: Signals, admin: extensions.connection) -> None:
    """Event, link and record lead to our own pool's checkout; the pool's figures stay, and nothing is left behind."""
    with table(dsn), instrumented(signals, long_hold=LONG):
        with (
            opened(kind, dsn) as pool,
            signals.pool(0, 1, dsn, name="ours", long_hold=None) as ours,
            held(pool, "select 1") as waiter,
            ours.connection() as conn,
        ):
            conn.cursor().execute("lock table stock")
            pid = conn.info.backend_pid
            work = in_thread(pool.run, waiter, "select count(*) from stock")
            sizes = pool.sizes()
            assert until(lambda: blocked(signals))
            assert pool.sizes() == sizes
            assert ask(admin, f"select count(*) {MONITORS}") == 1
            (span,) = blocked(signals)
            conn.rollback()
            work.result()
        if not kind.startswith("sqlalchemy"):  # an engine's pool counts as open until the engine is collected
            assert is_without_monitors(admin)
    assert is_without_monitors(admin)
    state = next(state for state in states(span) if "postgresql.blocking.pids" in state)
    assert state["postgresql.blocking.pids"] == (pid,)
    assert state["postgresql.blocking.lock.relation"] == "stock"
    assert (state["postgresql.state"], state["postgresql.wait_event_type"]) == ("active", "Lock")
    assert __file__ in state["otel_pgpool.blocking.checked_out_at"][0]
    (blocker,) = [each for each in signals.spans.started if each.context.span_id == span.links[0].context.span_id]
    assert blocker.attributes["db.client.connection.pool.name"] == "ours"
    assert min(hold_times(signals)) < ON_TIME
    assert any(f"of pid {pid}" in record.record.getMessage() for record in signals.logged("database_state"))
    assert unknown(signals) == []
    assert extensions.parse_dsn(dsn)["password"] not in signals.everything()
    assert {each.name.partition(".")[0] for each in signals.spans.started} == {"pool"}


@every_driver
def test_a_blocker_by_another_name_of_the_server(kind: str, dsn: str, signals: Signals) -> None:
    """A checkout of an instrumented pool is known as a blocker by the port of its connection."""
    with (
        table(dsn),
        instrumented(signals, long_hold=60),
        opened(kind, extensions.make_dsn(dsn, host="localhost")) as pool,
        signals.pool(0, 1, dsn, name="ours", long_hold=LONG) as ours,
        held(pool, "begin", "lock table stock") as blocker,
        ours.connection() as conn,
    ):
        work = in_thread(conn.cursor().execute, "lock table stock")
        assert until(lambda: blocked(signals))
        state = next(state for state in states(blocked(signals)[0]) if "postgresql.blocking.pids" in state)
        pool.run(blocker, "rollback")
        work.result()
    assert "monitored_pools.py" in state["otel_pgpool.blocking.checked_out_at"][0]


@pytest.mark.parametrize("value", ["on", "off", ""])
def test_other_values_open_nothing(
    value: str, dsn: str, signals: Signals, admin: extensions.connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default only our own pools are watched: the instrumentation connects to no server."""
    monkeypatch.setenv("OTEL_PGPOOL_DATABASE_STATE", value)
    with instrumented(signals, long_hold=0.01), opened("psycopg2", dsn) as pool, held(pool):
        assert until(lambda: signals.logged("long_hold"))
        time.sleep(3 * monitor.GATHER)  # what must not come cannot be awaited
        assert ask(admin, f"select count(*) {MONITORS}") == 0
        assert "otel_pgpool-monitor" not in {thread.name for thread in threading.enumerate()}


@every_driver
def test_a_refused_monitor(kind: str, dsn: str, signals: Signals, admin: extensions.connection) -> None:
    """A server without room costs the answer only, which one record says, without the password."""
    secret = "hunter2-of-the-limited"
    ask(admin, f"create role limited login superuser password '{secret}'")
    ask(admin, "create database small connection limit 2")
    ask(admin, "alter role limited nosuperuser")
    try:
        place = url_of(dsn, user="limited", password=secret, dbname="small")
        with instrumented(signals, long_hold=LONG), opened(kind, place) as pool, held(pool), held(pool):
            assert until(lambda: unknown(signals))
            assert until(lambda: len(hold_times(signals)) == SIZE)
        assert is_without_monitors(admin)
    finally:
        until(lambda: not ask(admin, "select count(*) from pg_stat_activity where datname = 'small'"))
        ask(admin, "drop database small")
        ask(admin, "drop role limited")
    (text,) = unknown(signals)
    assert 'too many connections for database "small"' in text
    assert max(hold_times(signals)) < ON_TIME
    assert secret not in signals.everything()


@every_driver
def test_a_frozen_monitor(
    kind: str, dsn: str, signals: Signals, admin: extensions.connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that gets no answer ends within its limit. Meanwhile, long holds are reported on time."""
    monkeypatch.setattr(server_queries, "AT_ONCE", 0.25)
    monkeypatch.setattr(bounded, "TIME_LIMIT", 0.5)
    monkeypatch.setattr(monitor_connection, "TIME_LIMIT", 0.5)
    with instrumented(signals, long_hold=LONG), opened(kind, dsn) as pool, held(pool):
        assert until(lambda: signals.logged("database_state"))
        with frozen(ask(admin, f"select pid {MONITORS}")):
            began = time.monotonic()
            with held(pool):
                assert until(lambda: len(hold_times(signals)) == SIZE)
                assert until(lambda: unknown(signals))
            assert time.monotonic() - began < 2.0
    assert is_without_monitors(admin)
    assert max(hold_times(signals)) < ON_TIME


def is_connected(descriptor: int) -> bool:
    """Return whether a descriptor of this process is a socket with a peer."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            return bool(duplicate.getpeername())
    except OSError:
        return False


@every_driver
def test_a_fork(kind: str, dsn: str, signals: Signals, admin: extensions.connection) -> None:
    """A child has no monitor, and leaves the parent's alone, which goes on to ask."""
    with instrumented(signals, long_hold=LONG), opened(kind, dsn) as pool, held(pool):
        assert until(lambda: signals.logged("database_state"))
        pid = ask(admin, f"select pid {MONITORS}")
        (watching,) = monitors._monitors.values()
        number: int = (
            watching._queries._conn._conn.fileno()
            if kind != "psycopg2"
            else watching._queries._conn._conn._conn.fileno()
        )  # type: ignore[union-attr]  # both are there
        assert is_connected(number)
        assert in_child(lambda: (gc.collect(), is_connected(number))[1]) == "False"
        assert until(lambda: len(signals.logged("database_state")) > 1)
        assert ask(admin, f"select array_agg(pid) {MONITORS}") == [pid]
    assert is_without_monitors(admin)


@every_driver
def test_a_cut_monitor(kind: str, dsn: str, signals: Signals, admin: extensions.connection) -> None:
    """A monitoring connection that the server ends is replaced."""
    with instrumented(signals, long_hold=LONG), opened(kind, dsn) as pool, held(pool):
        assert until(lambda: signals.logged("database_state"))
        kill(admin, [ask(admin, f"select pid {MONITORS}")])
        assert until(lambda: len(signals.logged("database_state")) > 1)
    assert is_without_monitors(admin)
    assert unknown(signals) == []


def test_a_watched_pool_is_collected(dsn: str, signals: Signals, admin: extensions.connection) -> None:
    """A monitor keeps no pool alive. The collection of the last pool ends the monitor, even during a hold."""
    with instrumented(signals, long_hold=LONG):
        pool = ThreadedConnectionPool(0, 1, dsn)
        conn = pool.getconn()
        assert until(lambda: signals.logged("database_state"))
        ref = weakref.ref(pool)
        del pool
        assert until(lambda: gc.collect() >= 0 and ref() is None)
        assert is_without_monitors(admin)
    conn.close()


def test_the_record_of_a_timeout(dsn: str, signals: Signals) -> None:
    """It says of each holder what the server said last."""
    with instrumented(signals, long_hold=LONG):
        pool = ThreadedConnectionPool(0, 1, dsn)
        conn = pool.getconn()
        conn.cursor().execute("select 1")
        assert until(lambda: signals.logged("database_state"))
        with pytest.raises(PoolError):
            pool.getconn()
        pool.putconn(conn)
        pool.closeall()
    (record,) = signals.logged("timeout")
    assert ", in the database 0." in record.record.getMessage()
    assert "idle in transaction" in record.record.getMessage()


def test_other_instrumentations_see_nothing(dsn: str, signals: Signals) -> None:
    """Neither the monitor's connects nor its statements get spans, even where psycopg2 and SQLAlchemy are traced."""
    with opened("psycopg2", dsn) as first, opened("sqlalchemy-psycopg2", dsn) as second:
        for pool in (first, second):
            with held(pool):
                pass
        traced = Psycopg2Instrumentor(), SQLAlchemyInstrumentor()
        for each in traced:
            each.instrument(tracer_provider=signals.tracer_provider, skip_dep_check=True)
        try:
            with instrumented(signals, long_hold=LONG), held(first), held(second):
                assert until(lambda: len(signals.logged("database_state")) > 1)
        finally:
            for each in traced:
                each.uninstrument()
    spans = {span.name for span in signals.spans.started if span.name.partition(".")[0] != "pool"}
    assert spans <= {"connect"}, spans  # SQLAlchemy's, of the program's own checkout
