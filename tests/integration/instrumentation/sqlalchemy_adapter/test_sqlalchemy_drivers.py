"""SQLAlchemy's engines on each driver that has no event loop: the same telemetry as on psycopg2."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine, exc
from sqlalchemy.dialects.postgresql import psycopg2 as psycopg2_dialect
from sqlalchemy.engine import make_url
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import read_levels
from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.database import kill, refused_port
from tests.support.sqlalchemy_drivers import REFUSED, SYNCHRONOUS, allow_quick_passwords, driver_url, pid_of
from tests.support.sqlalchemy_engines import (
    POOL_NAME,
    attribute,
    borrow,
    engine_tracker,
    hooked,
    lent,
    select,
    told,
    waits,
)
from tests.support.telemetry import assert_exactly, is_child, start_attributes, status_of, until
from tests.support.urls import url_of
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection
    from sqlalchemy.engine import Engine

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

    Make = Callable[..., Engine]

HERE = Path(__file__).name


@pytest.fixture(params=SYNCHRONOUS)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    allow_quick_passwords(monkeypatch)
    return name


@pytest.fixture
def make(engines: Engines, dsn: str, driver: str) -> Make:
    """Make an engine on the driver; a keyword of a URL's part replaces it."""

    def make(*, database: str | None = None, port: int | None = None, **options: Any) -> Engine:
        changes = {key: value for key, value in {"dbname": database, "port": port}.items() if value is not None}
        return engines(driver_url(dsn, driver, **changes), **options)

    return make


def name_of(engine: Engine) -> str:
    return str(engine.url._replace(password=None))


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool])
def test_checkouts(signals: Signals, instrumentation: None, make: Make, dsn: str, poolclass: type) -> None:
    """A checkout has every attribute, the backend as the server knows it included; the second finds it idle."""
    engine = make(poolclass=poolclass)
    with engine.connect() as conn:
        pid = pid_of(conn)
    borrow(engine)
    first, second = signals.named("pool.checkout")
    attributes = {"connection.id": 1, "connection.pid": pid}
    assert_exactly(first.attributes, lent(dsn, name_of(engine), path="new", **attributes))
    path = "new" if poolclass is NullPool else "idle"
    assert (attribute(second, "path"), attribute(second, "connection.id")) == (path, 1 + (poolclass is NullPool))
    connect = signals.named("pool.connect")[0]
    assert is_child(connect, first)
    assert_exactly(connect.attributes, {**start_attributes(dsn, name_of(engine)), "otel_pgpool.attempt": 1})


def test_queue(signals: Signals, instrumentation: None, make: Make) -> None:
    """A caller of a full pool waits for its release; the wait has a link to the holder."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    held = engine.connect()
    waiter = in_thread(borrow, engine)
    until(waits(engine))
    held.close()
    waiter.result(PATIENCE)
    assert sorted(told(signals, "path")) == ["new", "queued"]
    (holder,) = [span for span in signals.named("pool.checkout") if attribute(span, "path") == "new"]
    (link,) = signals.one("pool.wait").links
    assert holder.context is not None
    assert link.context.span_id == holder.context.span_id


def test_timeout(signals: Signals, instrumentation: None, make: Make) -> None:
    """An exhausted pool's caller gets SQLAlchemy's error; the telemetry names the holder and its line."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=0.02)
    with engine.connect() as held:
        pid = pid_of(held)
        with pytest.raises(exc.TimeoutError, match=r"^QueuePool limit of size 1 overflow 0 reached"):
            engine.connect()
        assert read_levels(engine.pool) == Levels(0, 1, 1, 0, 1)
        (holder,) = signals.live()
    failed, _ended = signals.named("pool.checkout")
    assert (attribute(failed, "outcome"), attribute(failed, "path")) == ("timeout", "queued")
    assert [link.context for link in signals.one("pool.wait").links] == [holder.get_span_context()]
    (record,) = signals.logged("timeout")
    (holder_text,) = record.attributes["otel_pgpool.holders"]
    assert f"{HERE}:" in holder_text
    assert f"(pid {pid}" in holder_text
    assert signals.value("db.client.connection.timeouts", pool_name=name_of(engine)) == 1


def test_outage(signals: Signals, instrumentation: None, make: Make, driver: str) -> None:
    """A server that cannot be reached is an outage, told with the system's words and without the password."""
    with refused_port() as port:
        engine = make(port=port)
        with pytest.raises(exc.DBAPIError):
            engine.connect()
    failed = signals.checkout()
    expected = "InterfaceError" if driver == "pg8000" else "OperationalError"
    assert (failed.attributes or {})["error.type"] == expected
    assert (attribute(failed, "path"), attribute(failed, "outcome")) == ("new", "error")
    assert "Connection refused" in str(status_of(failed)[1])
    assert is_child(signals.one("pool.connect"), failed)
    (outage,) = signals.logged("outage_started")
    assert "Connection refused" in outage.record.getMessage()
    assert engine_tracker(engine).stats().status == "unreachable"
    assert str(make_url(engine.url).password) not in signals.everything()


def test_refusal(signals: Signals, instrumentation: None, make: Make, driver: str) -> None:
    """A server that is up and refuses the connection is no outage."""
    engine = make(database="nowhere")
    with pytest.raises(exc.DBAPIError):
        engine.connect()
    failed = signals.checkout()
    assert (failed.attributes or {})["error.type"] == REFUSED[driver]
    assert 'database "nowhere" does not exist' in str(status_of(failed)[1])
    assert signals.logged("outage_started") == []
    (refused,) = signals.logged("connect_refused")
    assert refused.record.getMessage().count("cannot be reached") + refused.record.getMessage().count("refused") > 0
    assert "cannot be used" not in refused.record.getMessage()


def test_outage_that_ends(
    signals: Signals, instrumentation: None, own_server: Any, engines: Engines, driver: str
) -> None:
    """The first connect after an outage ends it."""
    engine = engines(driver_url(own_server.dsn, driver), poolclass=NullPool)
    borrow(engine)
    own_server.stop()
    for _ in range(2):
        with pytest.raises(exc.DBAPIError):
            engine.connect()
    own_server.start()
    borrow(engine)
    assert len(signals.logged("outage_started")) == 1
    (ended,) = signals.logged("outage_ended")
    assert ended.attributes["otel_pgpool.attempts"] == 2


def test_pre_ping(signals: Signals, instrumentation: None, make: Make, admin: connection) -> None:
    """A dead connection that the pool has found and replaced is a failed attempt of the checkout."""
    engine = make(pool_size=1, pool_pre_ping=True)
    kill(admin, [borrow(engine)])
    borrow(engine)
    assert told(signals, "path") == ["new", "new"]
    assert told(signals, "retries") == [0, 1]
    assert signals.values("otel_pgpool.connections.discarded", name_of(engine)) == {("broken",): 1}


def test_disconnect(signals: Signals, instrumentation: None, make: Make, admin: connection) -> None:
    """A connection that dies in the hands of its holder is discarded, with its checkout."""
    engine = make(pool_size=1)
    with engine.connect() as conn:
        kill(admin, [pid_of(conn)])
        with pytest.raises(exc.DBAPIError) as failure:
            select(conn)
        assert failure.value.connection_invalidated
    assert told(signals, "outcome") == ["discarded"]
    assert signals.values("otel_pgpool.connections.discarded", name_of(engine)) == {("broken",): 1}
    borrow(engine)
    assert told(signals, "path") == ["new", "new"]


def test_invalidated(signals: Signals, instrumentation: None, make: Make) -> None:
    """A connection that the program invalidates is discarded."""
    engine = make(pool_size=1)
    with engine.connect() as conn:
        conn.invalidate()
    assert told(signals, "outcome") == ["discarded"]
    assert signals.values("otel_pgpool.connections.discarded", name_of(engine)) == {("returned_closed",): 1}


def test_closed_on_release(signals: Signals, instrumentation: None, make: Make) -> None:
    """A connection that the program has closed beneath the pool is discarded at its release."""
    engine = make(pool_size=1, pool_reset_on_return=None)
    raw: Any = engine.raw_connection()
    raw.dbapi_connection.close()
    raw.close()
    assert told(signals, "outcome") == ["discarded"]


@pytest.mark.parametrize("statement", ["", "select 1", "select 1/0"])
def test_long_hold(signals: Signals, make: Make, statement: str) -> None:
    """The record of a long hold has the backend, the transaction's status, the line and the stack."""
    with hooked(signals, long_hold=0.3):
        engine = make()
        with engine.connect() as conn:
            transaction = conn.begin()
            if statement:
                with suppress(exc.DBAPIError):
                    select(conn, statement)
            (record,) = until(lambda: signals.logged("long_hold"))
            transaction.rollback()
            pid = pid_of(conn)
    attributes = record.attributes
    expected = {"": "idle", "select 1": "in_transaction", "select 1/0": "in_error"}[statement]
    assert attributes["otel_pgpool.transaction.status"] == expected
    assert attributes["otel_pgpool.connection.pid"] == pid
    assert HERE in attributes["otel_pgpool.checked_out_at"].splitlines()[0]
    assert "test_long_hold" in attributes["code.stacktrace"]


@pytest.mark.parametrize("spans", ["off", "slow", "parent"])
def test_modes(signals: Signals, make: Make, spans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without spans of ordinary checkouts, holds and levels are known all the same."""
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "60")
    with hooked(signals, spans=spans):
        engine = make()
        for _ in range(3):
            borrow(engine)
        with engine.connect():
            assert signals.values("db.client.connection.count", name_of(engine)) == {("used",): 1, ("idle",): 0}
        assert signals.named("pool.checkout") == []
        assert engine_tracker(engine).stats().checkouts == {"idle": 3, "queued": 0, "new": 1}


def test_engine_made_before(signals: Signals, make: Make) -> None:
    """Engines that exist are observed; uninstrumented, they continue as ever."""
    engine = make()
    borrow(engine)
    held = engine.connect()
    with hooked(signals):
        borrow(engine)
        held.close()
        open_checkout = engine.connect()
        assert told(signals, "path") == ["new"]
    assert told(signals, "outcome") == ["released", "released"]
    open_checkout.close()
    borrow(engine)
    assert len(signals.named("pool.checkout")) == 2


def test_errors_of_a_rollback_tell_no_secret(signals: Signals, instrumentation: None, make: Make) -> None:
    """Nothing that a function of the server raises is shown."""
    engine = make()
    with engine.connect() as conn:
        with pytest.raises(exc.DBAPIError):
            select(conn, "do $$ begin raise 's3cret'; end $$")
        raw = conn.connection
        raw.invalidate(exc.DBAPIError("select", {}, ValueError("s3cret")))
    assert told(signals, "outcome") == ["discarded"]
    assert "s3cret" not in signals.everything()


def test_bare_pool(signals: Signals, instrumentation: None, make: Make) -> None:
    """A pool without an engine is known by its first connection, on any driver."""
    engine = make()
    args, parameters = engine.dialect.create_connect_args(engine.url)
    dbapi: Any = engine.dialect.dbapi
    for cls in (QueuePool, SingletonThreadPool):
        pool = cls(lambda: dbapi.connect(*args, **parameters), logging_name=cls.__name__)
        for _ in range(2):
            pool.connect().close()
        pool.dispose()
    spans = [((span.attributes or {})[POOL_NAME], attribute(span, "path")) for span in signals.named("pool.checkout")]
    assert spans == [(name, path) for name in ("QueuePool", "SingletonThreadPool") for path in ("new", "idle")]


def test_thread_takes_its_connection_again(signals: Signals, instrumentation: None, make: Make) -> None:
    """A pool of one connection for each thread hands it out again; the hold lasts to the last release."""
    engine = make(poolclass=SingletonThreadPool)
    with engine.connect(), engine.connect():
        assert read_levels(engine.pool) == Levels(0, 0, 1, 0, 5)
    assert told(signals, "outcome") == ["released", "released"]
    assert read_levels(engine.pool) == Levels(0, 0, 0, 1, 5)


def test_pool_that_allows_one(signals: Signals, instrumentation: None, make: Make) -> None:
    """A pool that asserts a single checkout has a limit of one."""
    engine = make(poolclass=AssertionPool)
    with engine.connect(), pytest.raises(AssertionError):
        engine.connect()
    assert told(signals, "outcome") == ["error", "released"]
    assert read_levels(engine.pool) == Levels(0, 1, 0, 1, 1)


class NamelessDialect(psycopg2_dialect.PGDialect_psycopg2):
    """A dialect for a driver that nobody knows."""

    driver = "nameless"
    supports_statement_cache = True


def test_unknown_driver(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A driver of which nothing is known has spans, waits, holds and levels, and a backend of 0."""
    sqlalchemy.dialects.registry.register("postgresql.nameless", __name__, "NamelessDialect")
    sys.modules.setdefault(__name__, sys.modules[NamelessDialect.__module__])
    engine = engines(engines.url.replace("psycopg2", "nameless"), pool_size=1, max_overflow=0, pool_timeout=0.02)
    with engine.connect():
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        assert signals.values("db.client.connection.count", name_of(engine)) == {("used",): 1, ("idle",): 0}
    failed, served = signals.named("pool.checkout")
    assert (attribute(failed, "outcome"), attribute(served, "outcome")) == ("timeout", "released")
    assert (served.attributes or {}).get("otel_pgpool.connection.pid", 0) == 0
    assert is_child(signals.one("pool.wait"), failed)
    assert len(signals.one("pool.wait").links) == 1


def test_other_database(signals: Signals, instrumentation: None) -> None:
    """Another database's engines are left alone."""
    engine = create_engine("sqlite://")
    borrow_nothing = engine.connect()
    borrow_nothing.close()
    assert signals.named("pool.checkout") == []
    assert not isinstance(getattr(engine.pool, "_otel_pgpool", None), PoolTracker)
    engine.dispose()


@pytest.mark.skipif(sqlalchemy.__version__ < "2.1", reason="postgresql:// meant psycopg2")
def test_plain_url_of_an_unchanged_program(dsn: str) -> None:
    """From SQLAlchemy 2.1 on, ``postgresql://`` means psycopg 3; a program that says no more is observed."""
    program = """
import os, sqlalchemy
engine = sqlalchemy.create_engine(os.environ["DATABASE_URL"])
with engine.connect() as conn:
    pid = conn.exec_driver_sql("select pg_backend_pid()").scalar()
engine.dispose()
print(engine.dialect.driver, pid)
"""
    start = """
import atexit
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_pgpool.instrumentation import PgPoolInstrumentor
spans, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
PgPoolInstrumentor().instrument(tracer_provider=provider)
"""
    end = """
for span in spans.get_finished_spans():
    print(span.name, span.attributes.get("otel_pgpool.connection.pid"))
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + program + end],
        env={**os.environ, "DATABASE_URL": url_of(dsn)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    driver, pid = ran.stdout.splitlines()[0].split()
    assert driver == "psycopg"
    assert sorted(ran.stdout.splitlines()[1:]) == [f"pool.checkout {pid}", "pool.connect None"]
