"""Instrumented engines of SQLAlchemy: how long a checkout waited and held, its path, and the pool's levels."""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry.trace import SpanKind
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.orm import Session, declarative_base, sessionmaker
from sqlalchemy.pool import AssertionPool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool
from sqlalchemy.schema import Column
from sqlalchemy.types import Integer

from tests.support.database import ask, lives
from tests.support.sqlalchemy_engines import (
    Engines,
    attribute,
    borrow,
    denied,
    driver,
    engine_tracker,
    hooked,
    lent,
    listening,
    parameters_of,
    select,
    told,
    waits,
)
from tests.support.telemetry import (
    Signals,
    assert_exactly,
    is_child,
    start_attributes,
    status_of,
    until,
)
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection
    from sqlalchemy.engine import Engine

OF_A_FEW = (QueuePool, NullPool, StaticPool)
HERE = "tests/integration/instrumentation/test_sqlalchemy.py"


# A checkout


@pytest.mark.parametrize("poolclass", OF_A_FEW)
def test_checkout(signals: Signals, instrumentation: None, engines: Engines, dsn: str, poolclass: type) -> None:
    """A checkout is one span from ``connect`` to ``close``, under the caller's span and not current inside."""
    engine = engines(poolclass=poolclass)
    with signals.tracer.start_as_current_span("order") as order:
        conn = engine.connect()
        with signals.tracer.start_as_current_span("inside") as inside:
            pid = select(conn, "select pg_backend_pid()")
        (live,) = signals.live()
        conn.close()
    span = signals.checkout()
    assert live.get_span_context() == span.get_span_context()
    expected = lent(dsn, engines.name, path="new", **{"connection.id": 1, "connection.pid": pid})
    assert_exactly(span.attributes, expected | {"thread.name": "MainThread"})
    assert span.kind is SpanKind.INTERNAL
    assert status_of(span) == ("UNSET", None)
    assert [happened.name for happened in span.events] == ["pool.acquired"]
    assert is_child(span, order)
    assert is_child(inside, order)


@pytest.mark.parametrize(("poolclass", "path"), [(QueuePool, "idle"), (NullPool, "new"), (StaticPool, "idle")])
def test_second_checkout(signals: Signals, instrumentation: None, engines: Engines, poolclass: type, path: str) -> None:
    """What a pool has kept is handed over at once; one that keeps nothing connects again."""
    engine = engines(poolclass=poolclass)
    pids = [borrow(engine), borrow(engine)]
    assert told(signals, "path") == ["new", path]
    assert told(signals, "connection.pid") == pids
    assert told(signals, "connection.id") == ([1, 1] if path == "idle" else [1, 2])
    assert signals.values("otel_pgpool.checkouts", engines.name) == {
        ("idle",): path == "idle",
        ("queued",): 0,
        ("new",): 1 + (path == "new"),
    }


def test_connect(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """A connect is a client span under its checkout, and is counted and timed."""
    borrow(engines())
    connect = signals.one("pool.connect")
    assert is_child(connect, signals.checkout())
    assert connect.kind is SpanKind.CLIENT
    assert_exactly(connect.attributes, {**start_attributes(dsn, engines.name), "otel_pgpool.attempt": 1})
    assert signals.value("otel_pgpool.connections.created", pool_name=engines.name) == 1
    (created,) = signals.points("db.client.connection.create_time", engines.name)
    assert created.count == 1


def test_waits_and_holds_are_recorded(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """One record of the wait and one of the use for each checkout."""
    engine = engines()
    borrow(engine)
    borrow(engine)
    for name in ("wait_time", "use_time"):
        (point,) = signals.points(f"db.client.connection.{name}", engines.name)
        assert point.count == 2


@pytest.mark.parametrize("poolclass", OF_A_FEW)
def test_engine_made_before(signals: Signals, engines: Engines, poolclass: type) -> None:
    """What an engine did before the instrumentation is on is not told, and what it does then is."""
    engine = engines(poolclass=poolclass)
    held = engine.connect()
    borrow(engine)
    with hooked(signals):
        borrow(engine)
        held.close()
        borrow(engine)
        assert len(signals.named("pool.checkout")) == 2
        path = "new" if poolclass is NullPool else "idle"
        assert told(signals, "path") == [path, path]
        assert engine_tracker(engine).stats().used == 0
        assert signals.live() == []


def test_sqlalchemy_imported_after(dsn: str) -> None:
    """A program may import SQLAlchemy when the instrumentation is on already."""
    program = """
import os, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_pgpool.instrumentation import PgPoolInstrumentor
spans, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
PgPoolInstrumentor().instrument(tracer_provider=provider)
assert "sqlalchemy" not in sys.modules
import sqlalchemy
with sqlalchemy.create_engine(os.environ["DATABASE_URL"]).connect():
    pass
print(*sorted(span.name for span in spans.get_finished_spans()))
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "DATABASE_URL": Engines(dsn).url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("pool.checkout pool.connect\n", "")


def test_session(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A session's transaction is one checkout, whatever it does in it."""
    base: Any = declarative_base()
    table = type("Thing", (base,), {"__tablename__": "thing", "id": Column(Integer, primary_key=True)})
    engine = engines()
    with Session(engine) as session:
        connection = session.connection()
        select(connection, "create temporary table thing (id serial primary key)")
        session.add_all([table(), table()])
        session.flush()
        assert session.query(table).count() == 2
        assert signals.named("pool.checkout") == []
        session.commit()
        assert len(signals.named("pool.checkout")) == 1
        session.query(table).all()
        session.query(table).all()
    assert told(signals, "path") == ["new", "idle"]


def test_nobody_else_is_told_anything_new(signals: Signals, engines: Engines) -> None:
    """The program's own listeners hear the same events with and without the instrumentation."""

    def story() -> list[tuple[Any, ...]]:
        heard: list[tuple[Any, ...]] = []
        engine = engines(pool_size=1, max_overflow=1)
        for name in ("connect", "checkout", "checkin", "invalidate", "detach", "close", "close_detached"):
            event.listen(engine, name, lambda *args, name=name: heard.append((name, len(args))))
        with engine.connect() as one, engine.connect():
            one.invalidate()
        with engine.connect() as conn:
            conn.detach()
        engine.dispose()
        return heard

    without = story()
    with hooked(signals):
        assert story() == without
    assert story() == without


# Waiting


def test_queued(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A caller of a full pool waits: its span says so, with a link to each holder that it found."""
    engine = engines(pool_size=1, max_overflow=1, pool_timeout=PATIENCE)
    first, second = engine.connect(), engine.connect()
    waiter = in_thread(borrow, engine, name="waiter")
    until(waits(engine))
    assert signals.value("db.client.connection.pending_requests", pool_name=engines.name) == 1
    second.close()
    waiter.result(PATIENCE)
    first.close()
    assert signals.value("db.client.connection.pending_requests", pool_name=engines.name) == 0

    wait = signals.one("pool.wait")
    (queued,) = [span for span in signals.named("pool.checkout") if attribute(span, "path") == "queued"]
    assert is_child(wait, queued)
    assert queued.attributes is not None
    assert queued.attributes["thread.name"] == "waiter"
    holders = [span for span in signals.named("pool.checkout") if span is not queued]
    assert {link.context.span_id for link in wait.links} == {span.context.span_id for span in holders if span.context}
    for link in wait.links:
        assert_exactly(link.attributes, {"otel_pgpool.held": float, "otel_pgpool.connection.id": int})
    assert wait.start_time is not None
    assert wait.end_time is not None
    seconds = (wait.end_time - wait.start_time) / 1e9
    assert 0 < seconds <= attribute(queued, "wait_time") + 1e-6
    assert [happened.name for happened in queued.events] == ["pool.acquired"]


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_timeout(signals: Signals, instrumentation: None, engines: Engines, dsn: str, timeout: float) -> None:
    """The program gets SQLAlchemy's error; the span, the wait, the log and the metrics tell who was in the way."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=timeout)
    held = engine.connect()
    with pytest.raises(exc.TimeoutError, match=r"^QueuePool limit of size 1 overflow 0 reached"):
        engine.connect()
    failed = signals.checkout()
    assert_exactly(failed.attributes, denied(dsn, engines.name, "queued", "timeout", "timeout"))
    status, description = status_of(failed)
    assert status == "ERROR"
    assert description is not None
    assert description.startswith("QueuePool limit of size 1 overflow 0 reached")
    wait = signals.one("pool.wait")
    assert is_child(wait, failed)
    (holder,) = signals.live()
    assert [link.context.span_id for link in wait.links] == [holder.get_span_context().span_id]
    assert signals.value("db.client.connection.timeouts", pool_name=engines.name) == 1
    (record,) = signals.logged("timeout")
    assert record.record.levelname == "ERROR"
    assert record.attributes["otel_pgpool.used"] == 1
    (told_of,) = record.attributes["otel_pgpool.holders"]
    assert f"{HERE}:" in told_of
    assert " test_timeout " in told_of
    (failed_wait,) = [
        point
        for point in signals.points("db.client.connection.wait_time", engines.name)
        if "error.type" in point.attributes
    ]
    assert failed_wait.attributes["error.type"] == "timeout"
    held.close()
    assert engine_tracker(engine).stats().waiting == 0


def test_interrupted_wait(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An exception that a signal brings into the wait ends the checkout, by its name."""

    class Impatience(BaseException):
        pass

    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)

    def interrupt(*_args: Any) -> None:
        raise Impatience

    with engine.connect(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.pool._pool.not_empty, "wait", interrupt)
        with pytest.raises(Impatience):
            engine.connect()
    failed, _served = signals.named("pool.checkout")
    assert failed.attributes is not None
    assert (attribute(failed, "outcome"), failed.attributes["error.type"]) == ("error", "Impatience")
    assert engine_tracker(engine).stats().waiting == 0


def test_interrupt_when_the_span_has_started(
    signals: Signals, instrumentation: None, engines: Engines, interrupted_start: None
) -> None:
    """The checkout ends with the interrupt as its error, and the next one is as before."""
    engine = engines()
    with pytest.raises(KeyboardInterrupt):
        engine.connect()
    assert (signals.checkout().attributes or {})["error.type"] == "KeyboardInterrupt"
    stats = engine_tracker(engine).stats()
    assert (stats.errors, stats.used, stats.connecting) == (1, 0, 0)
    borrow(engine)
    assert told(signals, "outcome") == ["error", "released"]


@pytest.mark.parametrize("pre_ping", [False, True])
def test_what_is_idle_in_a_full_pool_is_not_waited_for(
    signals: Signals, instrumentation: None, engines: Engines, pre_ping: bool
) -> None:
    """A pool without overflow is full once it has connected; whoever finds one idle has not queued.

    However long the look at the connection takes, or a listener of the program's.
    """
    engine = engines(pool_size=1, max_overflow=0, pool_pre_ping=pre_ping)
    borrow(engine)

    def slowly(conn: connection, *_args: Any) -> None:
        with conn.cursor() as cur:
            cur.execute("select pg_sleep(0.01)")
        conn.rollback()

    with listening(engine, "checkout", slowly), pytest.MonkeyPatch.context() as patch:
        ping = engine.dialect.do_ping
        patch.setattr(engine.dialect, "do_ping", lambda conn: (slowly(conn), ping(conn))[1])
        borrow(engine)
    assert told(signals, "path") == ["new", "idle"]
    assert signals.named("pool.wait") == []


@pytest.mark.parametrize(("idle", "step"), [(0, "_inc_overflow"), (1, "_do_get")])
def test_what_was_free_is_taken_by_another(
    signals: Signals, instrumentation: None, engines: Engines, idle: int, step: str
) -> None:
    """A caller who saw a place free, or a connection idle, and found it taken, has queued from then on."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    for _ in range(idle):
        borrow(engine)
    taken: list[Any] = []
    take = getattr(engine.pool, step)

    def taken_before() -> Any:
        if not taken:
            taken.append(None)
            taken[0] = in_thread(engine.connect).result(PATIENCE)
        return take()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.pool, step, taken_before)
        waiter = in_thread(borrow, engine)
        until(waits(engine))
    taken[0].close()
    waiter.result(PATIENCE)
    assert sorted(told(signals, "path")) == [*["idle"] * idle, "new", "queued"]
    assert len(signals.one("pool.wait").links) == 1


# How full


def test_overflow(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """What overflows counts against the true limit, and is closed when it comes back."""
    engine = engines(pool_size=1, max_overflow=2)

    def figures() -> tuple[float, ...]:
        count = signals.values("db.client.connection.count", engines.name)
        others = ("db.client.connection.max", "db.client.connection.idle.max", "db.client.connection.idle.min")
        return (
            count["used",],
            count["idle",],
            signals.value("otel_pgpool.utilization", pool_name=engines.name),
            *(signals.value(name, pool_name=engines.name) for name in others),
        )

    with engine.connect():
        assert figures() == (1, 0, pytest.approx(1 / 3), 3, 1, 0)
        with engine.connect():
            assert figures() == (2, 0, pytest.approx(2 / 3), 3, 1, 0)
            with engine.connect():
                assert figures() == (3, 0, 1, 3, 1, 0)
    assert figures() == (0, 1, 0, 3, 1, 0)
    assert signals.values("otel_pgpool.connections.discarded", engines.name) == {("idle",): 2}
    assert told(signals, "outcome") == ["released"] * 3
    assert signals.value("otel_pgpool.connections.created", pool_name=engines.name) == 3


def test_full_pool_is_told(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Utilization is logged by the true limit: one of two is not high, two of two are critical."""
    engine = engines(pool_size=1, max_overflow=1)
    with engine.connect():
        with engine.connect():
            (critical,) = until(lambda: signals.logged("utilization_critical"))
            assert critical.attributes["otel_pgpool.used"] == 2
            assert critical.attributes["otel_pgpool.max"] == 2
        until(lambda: signals.logged("utilization_normal"))
    assert signals.logged("utilization_high") == []


@pytest.mark.parametrize("size", [1, 0])
def test_unlimited(signals: Signals, instrumentation: None, engines: Engines, size: int) -> None:
    """Without a limit there is no maximum and no utilization to tell, and nobody waits."""
    engine = engines(pool_size=size, max_overflow=-1)
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(engine.connect())
        assert signals.values("db.client.connection.count", engines.name) == {("used",): 4, ("idle",): 0}
        assert signals.values("db.client.connection.max", engines.name) == {}
        assert signals.values("otel_pgpool.utilization", engines.name) == {}
        assert engine_tracker(engine).stats().maxconn == 0
    kept = size or 4
    assert signals.values("db.client.connection.count", engines.name) == {("used",): 0, ("idle",): kept}
    assert signals.values("db.client.connection.idle.max", engines.name) == ({(): size} if size else {})
    assert told(signals, "path") == ["new"] * 4


def test_null_pool_levels(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A pool that keeps nothing has no limit, nothing idle, and closes what comes back."""
    engine = engines(poolclass=NullPool)
    with engine.connect(), engine.connect():
        assert signals.values("db.client.connection.count", engines.name) == {("used",): 2, ("idle",): 0}
        assert signals.values("db.client.connection.max", engines.name) == {}
        assert signals.value("db.client.connection.idle.max", pool_name=engines.name) == 0
    assert signals.values("db.client.connection.count", engines.name) == {("used",): 0, ("idle",): 0}
    assert signals.values("otel_pgpool.connections.discarded", engines.name) == {("idle",): 2}
    assert told(signals, "outcome") == ["released"] * 2


def test_static_pool_levels(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A pool of one connection lends it as often as it is asked: there is one in use, or one idle."""
    engine = engines(poolclass=StaticPool)
    with engine.connect():
        assert signals.values("db.client.connection.count", engines.name) == {("used",): 1, ("idle",): 0}
        assert signals.value("db.client.connection.max", pool_name=engines.name) == 1
    assert signals.values("db.client.connection.count", engines.name) == {("used",): 0, ("idle",): 1}


@pytest.mark.parametrize("last_first", [False, True])
def test_static_pool_lends_twice(signals: Signals, instrumentation: None, engines: Engines, last_first: bool) -> None:
    """Two who have the one connection of a static pool are two spans, both of which end."""
    engine = engines(poolclass=StaticPool)
    one, two = engine.connect(), engine.connect()
    for conn in (two, one) if last_first else (one, two):
        conn.close()
    assert len(signals.named("pool.checkout")) == 2
    assert signals.live() == []
    assert engine_tracker(engine).stats().used == 0


def test_pool_that_hands_out_the_same_twice(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A thread that asks its own pool of one for each thread again gets what it has: no span stays open."""
    engine = engines(poolclass=SingletonThreadPool)
    with engine.connect() as one, engine.connect() as two:
        assert driver(one) is driver(two)
    borrow(engine)
    assert signals.live() == []
    assert told(signals, "outcome").count("released") == len(told(signals, "outcome"))
    assert engine_tracker(engine).stats().used == 0


def test_pool_that_refuses(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A pool with an opinion of its own says so, and the span names the exception."""
    engine = engines(poolclass=AssertionPool)
    with engine.connect(), pytest.raises(AssertionError, match="already checked out"):
        engine.connect()
    failed, _served = signals.named("pool.checkout")
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "AssertionError"
    assert signals.named("pool.connect")[1:] == []


def test_pool_that_waits_in_its_own_way(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A class of the program's that has no queue to look at, and says that it timed out, has let its caller wait."""

    class Own(QueuePool):
        def _do_get(self) -> Any:
            raise exc.TimeoutError("in its own way")

    with pytest.raises(exc.TimeoutError, match="in its own way"):
        engines(poolclass=Own).connect()
    failed = signals.checkout()
    assert (attribute(failed, "outcome"), attribute(failed, "path")) == ("timeout", "queued")
    assert is_child(signals.one("pool.wait"), failed)


@pytest.mark.parametrize("where", ["connect", "checkout", "do_connect", "creator"])
def test_timeout_of_another_pool(signals: Signals, instrumentation: None, engines: Engines, where: str) -> None:
    """If a callback of the program gets no connection from another pool, only that pool has timed out."""
    full = engines(pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="full")

    def use_full(*_args: Any) -> None:
        borrow(full)

    engine = engines(pool_logging_name="own", **({"creator": use_full} if where == "creator" else {}))
    if where != "creator":
        event.listen(engine, where, use_full)
    with full.connect(), pytest.raises(exc.TimeoutError):
        engine.connect()
    figures = [
        (stats.timeouts, stats.errors, stats.queued)
        for stats in (engine_tracker(each).stats() for each in (full, engine))
    ]
    assert figures == [(1, 0, 1), (0, 1, 0)]


@pytest.mark.parametrize("is_defined_before", [True, False])
@pytest.mark.parametrize("spans", ["all", "off"])
def test_pool_that_delegates_to_another(
    signals: Signals, engines: Engines, spans: str, is_defined_before: bool
) -> None:
    """A pool whose class shows the attributes of another pool as its own has telemetry of its own."""

    class Delegating:
        behind: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.behind, name)

    def define() -> type[QueuePool]:
        return type("Front", (Delegating, QueuePool), {})

    before = define()
    with hooked(signals, spans=spans):
        cls = before if is_defined_before else define()
        behind, engine = engines(pool_logging_name="behind"), engines(poolclass=cls, pool_logging_name="front")
        borrow(behind)
        pool: Any = engine.pool
        pool.behind = behind.pool
        borrow(engine)
        assert [engine_tracker(each).stats().name for each in (engine, behind)] == ["front", "behind"]
        assert [engine_tracker(each).stats().created for each in (engine, behind)] == [1, 1]
    assert "_otel_pgpool" not in vars(cls)
    assert "__init_subclass__" not in vars(Pool)


# Names


def test_logging_name(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """The name that the program gave its pool is the pool's name."""
    borrow(engines(pool_logging_name="orders"))
    assert (signals.checkout().attributes or {})["db.client.connection.pool.name"] == "orders"
    assert signals.values("db.client.connection.count", "orders") == {("used",): 0, ("idle",): 1}


def test_secrets_of_the_url(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """Neither the URL's password nor anything secret in its query is told anywhere."""
    host, port = (parameters_of(dsn)[name] for name in ("host", "port"))
    password = f"s3cret-{secrets.token_hex(16)}"
    with psycopg2.connect(dsn) as conn, conn.cursor() as cur:
        cur.execute("drop role if exists secretive; create role secretive login password %s", (password,))
    conn.close()
    url = (
        f"postgresql+psycopg2://secretive:{password}@/postgres?host={host}&port={port}"
        "&sslpassword=s3cret-key&application_name=s3cret-app&connect_timeout=7"
    )
    engine = engines(url)
    borrow(engine)
    (name,) = {point.attributes["db.client.connection.pool.name"] for point in every_point(signals)}
    assert name == f"postgresql+psycopg2://secretive@/postgres?host={host}&port={port}"
    assert (signals.checkout().attributes or {})["server.address"] == host
    with pytest.raises(exc.OperationalError):
        engines(f"postgresql+psycopg2://postgres:s3cret-word@{host}:1/postgres?sslpassword=s3cret-key").connect()
    assert "s3cret" not in signals.everything()


def every_point(signals: Signals) -> Iterator[Any]:
    for metric in signals.metrics().values():
        yield from metric.data.data_points


def test_two_engines_on_one_url(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Each has a name of its own."""
    one, two = engines(), engines()
    with one.connect(), two.connect():
        pass
    assert engine_tracker(one).name == engines.name
    assert engine_tracker(two).name == f"{engines.name} #2"


def test_engines_of_execution_options(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An engine with options of its own shares the pool of the engine that it comes from, and its name."""
    engine = engines()
    borrow(engine.execution_options(isolation_level="AUTOCOMMIT").execution_options(logging_token="two"))
    borrow(engine)
    borrow(engine.execution_options(isolation_level="SERIALIZABLE"))
    assert told(signals, "path") == ["new", "idle", "idle"]
    assert told(signals, "connection.id") == [1, 1, 1]


def dispose(engine: Engine) -> None:
    engine.dispose()


def dispose_by_options(engine: Engine) -> None:
    engine.execution_options(logging_token="one").dispose()


@pytest.mark.parametrize("first", [borrow, lambda engine: borrow(engine.execution_options(logging_token="one"))])
@pytest.mark.parametrize("end", [dispose, dispose_by_options])
def test_dispose(
    signals: Signals,
    instrumentation: None,
    engines: Engines,
    first: Callable[[Engine], int],
    end: Callable[[Engine], None],
) -> None:
    """An engine that is disposed of goes on under its name, with its totals; what was idle is drained."""
    engine = engines()
    first(engine)
    end(engine)
    borrow(engine)
    assert signals.values("otel_pgpool.checkouts", engines.name) == {("idle",): 0, ("queued",): 0, ("new",): 2}
    assert signals.value("otel_pgpool.connections.created", pool_name=engines.name) == 2
    assert signals.values("otel_pgpool.connections.discarded", engines.name) == {("drained",): 1}
    assert {point.attributes["db.client.connection.pool.name"] for point in every_point(signals)} == {engines.name}


def test_dispose_in_contention(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An engine that is disposed of time and again while threads ask it is one pool that counts on."""
    engine = engines(pool_size=4)
    together = threading.Barrier(4, action=engine.dispose)

    def work() -> None:
        for _ in range(20):
            together.wait(PATIENCE)
            borrow(engine)
            borrow(engine)

    for future in [in_thread(work) for _ in range(4)]:
        future.result(PATIENCE)
    assert len(signals.named("pool.checkout")) == 160
    assert sum(signals.values("otel_pgpool.checkouts", engines.name).values()) == 160
    assert {point.attributes["db.client.connection.pool.name"] for point in every_point(signals)} == {engines.name}
    assert engine_tracker(engine).stats().used == 0


def test_held_across_dispose(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A connection that is out while its engine is disposed of ends as it would have."""
    engine = engines()
    held = engine.connect()
    engine.dispose()
    borrow(engine)
    held.close()
    assert told(signals, "outcome") == ["released", "released"]
    assert signals.live() == []
    assert signals.values("db.client.connection.count", engines.name) == {("used",): 0, ("idle",): 1}


def test_engine_that_is_dropped(signals: Signals, instrumentation: None, engines: Engines, admin: connection) -> None:
    """The instrumentation keeps no engine alive: once it is collected its connections close and its series end."""
    engine = create_engine(engines.url)
    pid = borrow(engine)
    del engine
    gc.collect()
    until(lambda: not lives(admin, pid))
    until(lambda: signals.values("db.client.connection.count", engines.name) == {})


# Whose line


def by_begin(engine: Engine) -> Any:
    stack = ExitStack()
    stack.enter_context(engine.begin())
    return stack


def by_connect(engine: Engine) -> Any:
    return engine.connect()


def by_session(engine: Engine) -> Any:
    session = Session(engine)
    session.connection()
    return session


def by_query(engine: Engine) -> Any:
    session = sessionmaker(engine)()
    session.execute(text("select 1"))
    return session


def by_raw_connection(engine: Engine) -> Any:
    return engine.raw_connection()


WAYS = (by_begin, by_connect, by_session, by_query, by_raw_connection)


@pytest.mark.parametrize("way", WAYS)
def test_line_that_asked(signals: Signals, engines: Engines, way: Callable[[Engine], Any]) -> None:
    """A long hold is told while it goes on, with the program's own lines, however the connection is asked for."""
    engine = engines()
    with hooked(signals, long_hold=0.01):
        held = way(engine)
        (record,) = until(lambda: signals.logged("long_hold"))
        (live,) = signals.live()
        assert [happened.name for happened in live.events] == ["pool.acquired", "pool.long_hold"]
        assert signals.value("otel_pgpool.oldest_hold", pool_name=engines.name) > 0.01
        assert signals.value("otel_pgpool.long_holds", pool_name=engines.name) == 1
        held.close()
    innermost = record.attributes["otel_pgpool.checked_out_at"].splitlines()[0]
    assert innermost.endswith(f" {way.__name__}")
    assert f"{HERE}:" in innermost
    assert "sqlalchemy/" not in record.attributes["otel_pgpool.checked_out_at"]
    assert attribute(signals.checkout(), "long_hold") is True
    assert signals.logged("long_hold_returned")


def test_query_that_goes_on(signals: Signals, engines: Engines, admin: connection) -> None:
    """Of a long hold it is told whether a query runs."""
    engine = engines()
    pid = borrow(engine)
    running = "select count(*) from pg_stat_activity where pid = %s and state = 'active' and query ~ 'pg_sleep'"
    with hooked(signals, long_hold=PATIENCE):
        sleeper = in_thread(query, engine, "select pg_sleep(60)")
        until(lambda: ask(admin, running, pid))
        engine_tracker(engine).long_hold = 0.0
        (record,) = until(lambda: signals.logged("long_hold"))
        assert record.attributes["otel_pgpool.connection.pid"] == pid
        assert record.attributes["otel_pgpool.transaction.status"] == "active"
        assert ask(admin, "select pg_cancel_backend(%s)", pid)
        assert isinstance(sleeper.exception(PATIENCE), exc.OperationalError)


def query(engine: Engine, sql: str) -> Any:
    with engine.connect() as conn:
        return select(conn, sql)


# In contention


def test_contention(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Of many threads on few connections every checkout is one span, and the levels come back to nothing."""
    engine = engines(pool_size=2, max_overflow=1, pool_timeout=PATIENCE)
    threads, rounds = 8, 25

    def work() -> None:
        for _ in range(rounds):
            borrow(engine)

    for future in [in_thread(work) for _ in range(threads)]:
        future.result(PATIENCE)
    spans = signals.named("pool.checkout")
    assert len(spans) == threads * rounds
    assert signals.live() == signals.live("pool.wait") == []
    assert {attribute(span, "outcome") for span in spans} == {"released"}
    paths = [attribute(span, "path") for span in spans]
    checkouts = signals.values("otel_pgpool.checkouts", engines.name)
    assert checkouts == {(path,): paths.count(path) for path in ("idle", "queued", "new")}
    waited = {span.parent.span_id for span in signals.named("pool.wait") if span.parent}
    assert {span.context.span_id for span in spans if span.context and attribute(span, "path") == "queued"} <= waited
    stats = engine_tracker(engine).stats()
    assert (stats.used, stats.waiting, stats.connecting, stats.oldest_hold) == (0, 0, 0, 0.0)
    assert stats.created == paths.count("new") == len(signals.named("pool.connect"))
    assert set(stats.discarded) <= {"idle"}
    assert stats.created - sum(stats.discarded.values()) == stats.idle


def test_new_engines_in_contention(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An engine whose first checkouts come at once is one pool."""
    engine = engines(pool_size=4)
    together = threading.Barrier(4)

    def first() -> None:
        together.wait(PATIENCE)
        borrow(engine)

    for future in [in_thread(partial(first)) for _ in range(4)]:
        future.result(PATIENCE)
    assert sum(signals.values("otel_pgpool.checkouts", engines.name).values()) == 4
    assert {point.attributes["db.client.connection.pool.name"] for point in every_point(signals)} == {engines.name}
